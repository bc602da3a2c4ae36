"""How the rows of each form are read: a line in; turns, answers, scores out. `data.formats` has the
table of them.
"""
