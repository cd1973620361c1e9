"""Fine-tuning of a chest X-ray classifier in Keras 3, and the measures of how good it is."""
