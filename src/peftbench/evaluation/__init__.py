"""From a trained model to predictions, and from predictions to scores."""
