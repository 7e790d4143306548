"""Event time: times of messages, their order, and a clock that makes one timestep of all messages of a tick.

All of it is without input and output: the connector, recorded data and `stepwell.resample` run the same code.
"""
