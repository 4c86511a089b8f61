"""The protocol of Alibaba's DashScope: text generation and embedding."""
