"""Tune few parameters of a network: blocks that start as the identity, and biases that stay
trainable.
"""
