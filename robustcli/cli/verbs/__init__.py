"""One file per verb: what its help says, which flags it takes, and the call of its work function.

The application finds them by themselves. The name of the file is the name of the verb.
"""
