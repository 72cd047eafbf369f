"""Nets of 1 to 3 hidden layers of ReLU: forward, backward, and clipping of each row's gradient.

Cross-entropy for classes, half the squared error for numbers. All rows of a block go through at once.
"""

from __future__ import annotations

import numpy as np

from zkd.models.losses import linear, softmax
from zkd.models.model import Matrix, Model, Vector
from zkd.models.rows import Block


def scores(layers: list[Matrix], x: Matrix) -> Matrix:
    """The last layer's outputs (n, K) for rows (n, features + 1) with a last column of ones."""
    return forward(layers, x)[1]


def forward(layers: list[Matrix], x: Matrix) -> tuple[list[Matrix], Matrix]:
    """What goes into each layer, with a last column of ones, and what comes out of the last."""
    inputs = [x]
    for layer in layers[:-1]:
        hidden = np.ones((len(x), layer.shape[1] + 1))
        np.maximum(inputs[-1] @ layer, 0.0, out=hidden[:, :-1])
        inputs.append(hidden)
    return inputs, inputs[-1] @ layers[-1]


def of_block(model: Model, layers: list[Matrix], block: Block, gradient: Vector | None, clip: float | None) -> Vector:
    """The losses of the block's rows, (n,); adds to `gradient`."""
    inputs, z = forward(layers, block.x)
    if model.has_classes:
        losses, slopes, _ = softmax(z, block.target)
    else:
        losses, slope, _ = linear(z[:, 0], block.target, curvature=False)
        slopes = slope[:, None]
    if gradient is not None:
        if clip is not None:
            slopes = slopes * np.minimum(1.0, clip / row_norms(layers, inputs, slopes).clip(min=1e-300))[:, None]
        add_gradient(layers, inputs, block.weight[:, None] * slopes, model.layers(gradient))
    return losses


def add_gradient(layers: list[Matrix], inputs: list[Matrix], slopes: Matrix, gradients: list[Matrix]) -> None:
    """Adds the sum over rows of slopes (n, K) carried back to each layer's matrix."""
    for index in range(len(layers) - 1, -1, -1):
        gradients[index] += inputs[index].T @ slopes
        if index:
            slopes = slopes_below(layers[index], inputs[index], slopes)


def slopes_below(layer: Matrix, into: Matrix, slopes: Matrix) -> Matrix:
    """Slopes in the sums below a layer of ReLU; where a sum is exactly 0, its slope is 0."""
    return (slopes @ layer[:-1].T) * (into[:, :-1] > 0)


def row_norms(layers: list[Matrix], inputs: list[Matrix], slopes: Matrix) -> Vector:
    """The norm of each row's own gradient, (n,), without making it (Goodfellow, arXiv 1510.01799)."""
    squares = np.zeros(len(slopes))
    for index in range(len(layers) - 1, -1, -1):
        squares += np.einsum("ij,ij->i", slopes, slopes) * np.einsum("ij,ij->i", inputs[index], inputs[index])
        if index:
            slopes = slopes_below(layers[index], inputs[index], slopes)
    return np.sqrt(squares)
