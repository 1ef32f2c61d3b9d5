"""One file per fine-tuning method: configuration with the defaults of the paper, and how it is applied."""
