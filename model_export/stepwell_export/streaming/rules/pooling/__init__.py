"""Attention pooling: what a sum over time weighs, by a softmax over time or by answers for the whole sequence.

Such a weight changes for all timesteps with each new one. A value that it weighs has an answer for the timesteps so far
only once it is summed over them; until then the parts of this timestep are kept, and go through the nodes together.

Before and after:

    s (B, T, 1)    x (B, T, 4)             s (B, 1, 1)   x (B, 1, 4)   largest, weight, mean so far
       | Softmax over T  |                       largest' = Max (largest, s)
       Mul --------------+            ->         w = exp(s - largest')
        | ReduceSum over T                       weight' = weight * exp(largest - largest') + w
    y (B, 4)                               y (B, 4): mean' = mean + (x - mean) * w / weight'
"""
