"""Models and how they are trained: numerics only, numpy only, no I/O.

A part of the rows is asked for *partials* at given parameters: sums over its rows of the loss, of its gradient, where
it pays of its Hessian. The partials of all parts add up to the whole exactly, in any order and grouping (`binned`), so
a model is the same, bit for bit, whatever nodes its parts lay on. Optimisers are step machines that say at which
parameters they want to be told what (`Ask`), and never see a row.

    model, rows          what is trained and how its parameters lie in a vector; rows in blocks
    losses, mlp          of one row's score, and of nets            folding     standardising without touching a row
    partials, picks      sums over a part; which of its rows        messages    both of them between nodes
    binned               sums without order                         objective   penalties, slope, certificate
    survey, spread       what is in the data, guards, scales        split       which rows are held out
    plan, training       what a run was asked to do, and the run    story       what is told of it
    newton, lbfgs, descent, stochastic   optimisers                 checkpoints a run as plain data, and back
    predict, explain, importance         what a model says          privacy     noise and its accountant
    fit                  all of it in one process
"""
