"""Checkpoints of transformers' Glm4v and Glm4vMoe: names, config, conversion in both directions, comparison."""
