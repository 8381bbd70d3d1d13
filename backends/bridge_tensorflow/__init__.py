"""The TensorFlow backend: SavedModels of TensorFlow 1 and 2, and Keras models."""
