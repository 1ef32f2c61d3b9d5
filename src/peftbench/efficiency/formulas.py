"""The paper's formulas of training and inference FLOPs (its equations 5 and 6), and the tokens they imply.

They charge every parameter with every token: the vision tower and the connector too, though these see the
image only. Equation 5 has no term for the gradients of activations, which have to pass through frozen
weights. Equation 6 takes the tokens of the whole evaluation for the length of the context.
"""

from collections.abc import Sequence


def training_flops(frozen: int, trainable: int, tokens: float) -> float:
    """Equation 5: ``(2 P_f + 4 P_t) N_t``."""
    return (2 * frozen + 4 * trainable) * tokens


def inference_flops(without_embedding: int, layers: int, width: int, tokens: float) -> float:
    """Equation 6: ``2 (P_g + n_layer d N_t)``.

    ``P_g`` are all parameters but the input embedding; that is what the published numbers fit.
    """
    return 2 * (without_embedding + layers * width * tokens)


def implied_tokens(published: float, frozen: int, trainable: int) -> float:
    """``N_t`` of a published number of training FLOPs."""
    return published / training_flops(frozen, trainable, 1)


def common_tokens(pairs: Sequence[tuple[float, float]]) -> float:
    """One ``N_t`` for all: least squares of the relative errors.

    ``pairs`` are (published training FLOPs, those of one token by the formula). ``ValueError`` for none.
    """
    if not pairs:
        raise ValueError("no published numbers to fit")
    shares = [per_token / published for published, per_token in pairs]
    return sum(shares) / sum(share * share for share in shares)
