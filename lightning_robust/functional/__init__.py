"""Decide: pure functions from tensors to tensors, filed by the mathematical object they compute."""
