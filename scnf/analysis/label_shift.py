r"""Correct posteriors for images whose classes are mixed in other shares than those of training.

Label shift means that p(y) changes and p(x | y) stays. A model with prior p(y) gives p(y | x) by Bayes' rule, so that
p(x | y) = p(y | x) p(x) / p(y). With q(y) in place of p(y), the posterior of an image becomes

    q(y | x) = p(y | x) q(y) / p(y) / sum_k p(k | x) q(k) / p(k),

which is what :func:`reweight` computes. The density of an image under the new mix is q(x) = sum_k q(k) p(x | k), so
that the mean log-likelihood of N unlabelled images is

    L(q) = 1/N sum_i log sum_k q(k) p(k | x_i) / p(k) + a constant.

L is concave in q. :func:`estimate_prior` maximises it by EM (Saerens, Latinne and Decaestecker 2002, Neural Computation
14(1), 21-41, https://doi.org/10.1162/089976602753284446, eq. 2.9). The E step computes q(k | x_i) as above, and the M
step sets q(k) to the mean of q(k | x_i) over the images, which never lowers L.

Both are exact for exact posteriors of a model p(x, y). They rely on calibrated posteriors (Alexandari, Kundaje and
Shrikumar 2020, https://arxiv.org/abs/1901.06852).
"""

import numpy as np

from scnf.checks import check_count
from scnf.errors import InvalidArgument

_ROUNDING = 1e-3  # by which a sum of probabilities may differ from 1


def estimate_prior(
    posteriors: np.ndarray, prior: np.ndarray, tolerance: float = 1e-8, max_steps: int = 10_000
) -> np.ndarray:
    r"""Estimate the shares of the classes among unlabelled images by maximum likelihood, with EM.

    With r_ik = p(k | x_i) / p(k) and s_i = sum_k q(k) r_ik, one step multiplies q(k) by g_k = 1/N sum_i r_ik / s_i.
    L is concave and g is its gradient, so that L is at most max_k g_k - 1 below its maximum. EM stops where this bound
    is below the tolerance.

    Args:
        posteriors: p(y | x) [N, K] of the images, under the prior of training.
        prior: Prior p(y) [K] of training, all above 0.
        tolerance: Distance from the greatest mean log-likelihood, in nats per image.
        max_steps: Number of steps after which EM stops in any case.

    Returns:
        The estimated prior q(y) [K], which sums to 1.

    Raises:
        InvalidArgument: The posteriors or the prior are no probabilities, or the prior does not fit them.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> y = (rng.random(5000) < 0.1).astype(int)  # the second class is rare
        >>> x = rng.normal(2.0 * y)
        >>> posterior = 1 / (1 + np.exp(2 - 2 * x))  # p(y = 1 | x) where both classes are equally frequent
        >>> prior = estimate_prior(np.stack([1 - posterior, posterior], axis=1), np.array([0.5, 0.5]))
        >>> prior.round(1)
        array([0.9, 0.1])
    """
    posteriors, prior = _check_posteriors(posteriors), check_prior("prior", prior, np.shape(posteriors)[-1])
    check_count("max_steps", max_steps)
    if (prior <= 0).any():
        raise InvalidArgument("prior", "must be above 0 for each class, because posteriors are divided by it")
    ratios, shares = posteriors / prior, prior
    for _ in range(max_steps):
        gradient = (1 / (ratios @ shares)) @ ratios / len(ratios)
        if gradient.max() - 1 < tolerance:
            break
        shares = shares * gradient
        shares = shares / shares.sum()
    return shares


def reweight(posteriors: np.ndarray, prior: np.ndarray, new_prior: np.ndarray) -> np.ndarray:
    """Return the posteriors [N, K] under another prior.

    A row whose classes all have a probability of 0 under the new prior gets the new prior.

    Args:
        posteriors: p(y | x) [N, K] under the prior of training.
        prior: Prior p(y) [K] of training, all above 0.
        new_prior: Prior q(y) [K] of the images.

    Raises:
        InvalidArgument: The posteriors or a prior are no probabilities, or a prior does not fit them.

    Example:
        >>> reweight(np.array([[0.5, 0.5]]), np.array([0.5, 0.5]), np.array([0.9, 0.1]))
        array([[0.9, 0.1]])
    """
    posteriors = _check_posteriors(posteriors)
    prior, new_prior = (
        check_prior(name, values, posteriors.shape[1]) for name, values in (("prior", prior), ("new_prior", new_prior))
    )
    if (prior <= 0).any():
        raise InvalidArgument("prior", "must be above 0 for each class, because posteriors are divided by it")
    joint = posteriors * (new_prior / prior)
    total = joint.sum(axis=1, keepdims=True)
    return np.where(total > 0, joint / np.where(total > 0, total, 1), new_prior)


def check_prior(name: str, prior: np.ndarray, num_classes: int) -> np.ndarray:
    """Return a prior [K] as float64 that sums to 1.

    Raises:
        InvalidArgument: These are not K numbers of 0 or more that sum to 1.
    """
    prior = np.asarray(prior, np.float64)
    if prior.shape != (num_classes,) or not (prior >= 0).all() or not abs(prior.sum() - 1) <= _ROUNDING:
        raise InvalidArgument(name, f"must be {num_classes} numbers of 0 or more that sum to 1, one for each class")
    normalised: np.ndarray = prior / prior.sum()
    return normalised


def _check_posteriors(posteriors: np.ndarray) -> np.ndarray:
    posteriors = np.asarray(posteriors, np.float64)
    if posteriors.ndim != 2 or not posteriors.size:
        raise InvalidArgument("posteriors", f"must be [N, K] with one row or more, not {list(posteriors.shape)}")
    if not (posteriors >= 0).all() or not (abs(posteriors.sum(axis=1) - 1) <= _ROUNDING).all():
        raise InvalidArgument("posteriors", "must be 0 or more and sum to 1 in each row")
    return posteriors
