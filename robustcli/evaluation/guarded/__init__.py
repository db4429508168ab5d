"""The honest evaluation of a guarded model: bare, oblivious and adaptive, and what rejecting costs.

    bare        the first network without its defences, under the attacks
    oblivious   points made on that network, shown to the guarded model
    adaptive    the worst of these points and of all searches that know the defences, for each sample

A sample is robust when the clean image is right and accepted, and no point found is wrong and accepted.
"""
