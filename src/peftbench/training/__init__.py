"""Fine-tuning: batches, the loop and cached image features."""
