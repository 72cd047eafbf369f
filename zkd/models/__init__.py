"""Models and how they are trained: numerics only, numpy only, no I/O.

A part of the rows is asked for *partials* at given parameters: sums over its rows of the loss, of its gradient, where
it pays of its Hessian. The partials of all parts add up to the whole exactly, in any order and grouping (`binned`), so
a model is the same, bit for bit, whatever nodes its parts lay on. Optimisers are step machines that say at which
parameters they want to be told what (`Ask`), and never see a row.

    model      what is trained, and how its parameters lie in one vector      rows       rows in blocks, standardised
    losses     loss, slope and curvature of one row's score                   partials   sums over a part (mlp: of nets)
    binned     sums without order                                             survey     what is in the data, guards
    objective  penalties, slope, certificate                                  training   the run: stops, best, path
    descent, stochastic, lbfgs, newton                                        optimisers
    split, explain, importance, privacy, predict                              guards and explanations
"""
