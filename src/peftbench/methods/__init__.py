"""One file per fine-tuning method: its configuration with the defaults of the paper, and how it is applied."""
