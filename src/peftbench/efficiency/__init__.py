"""What tuning and answering cost: trainable parameters, and floating-point operations by formula and by count."""
