"""The protocol of Text Generation Inference."""
