"""Layouts of published weight files, one file for each architecture. The registry imports them all.

A registered function reads the parameters of the network from the tensors, {our name: tensor} -> {parameter:
value}; its facts say how the tensors are named.
"""
