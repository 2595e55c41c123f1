"""The image classification task, the pictures it reads, and how it augments them."""
