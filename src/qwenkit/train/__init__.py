"""Fine-tuning on transformers, PEFT and accelerate. Knows nothing of engines or servers."""
