"""Tables of a method's parts: one specification, many trainings, means with their spread.

:mod:`.specification` says what a table consists of, :mod:`.jobs` takes it apart into trainings and
evaluations, :mod:`.runner` does those that are not done yet, :mod:`.report` writes results, table and plots.
"""
