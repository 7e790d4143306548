"""Attention pooling: what a sum over time weighs, by a softmax over time or by answers for the whole sequence.

Such a weight changes for all timesteps with each new one. A value that it weighs has an answer for the timesteps so far
only once it is summed over them; until then the parts of this timestep are kept, and go through the nodes together.
"""
