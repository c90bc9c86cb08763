"""Sharing a budget of tokens among modalities: proportions, capacities, and no token of it left over where one fits."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

# exp(-600) is far from underflow in float64 and far below what any budget could tell from zero.
SMALLEST_LOG_SHARE = -600.0


def fill(log_shares: Floats, capacity: Ints, budget: Ints, offset: Floats) -> Ints:
    """Whole numbers of tokens `rows modalities`, in proportion to the shares and at most `capacity`.

    What a modality cannot use goes to the others in proportion to their shares (water-filling), so that each row sums
    to `budget` (`rows`), or to its whole capacity where that is less. `offset` (`rows`, in [0, 1)) decides the
    rounding: drawn uniformly, the expected number of tokens is the exact one (systematic sampling).
    """
    room = capacity
    log_shares = np.where(room > 0, log_shares, -np.inf)
    peak = log_shares.max(axis=1, keepdims=True, initial=-np.inf)
    peak = np.where(np.isfinite(peak), peak, 0.0)
    weight = np.where(capacity > 0, np.exp(np.maximum(log_shares - peak, SMALLEST_LOG_SHARE)), 0.0)
    # The water rises: a modality is full at the level capacity / weight, so the lowest of these are full first.
    full_at = np.divide(capacity, weight, out=np.full(weight.shape, np.inf), where=weight > 0)
    order = np.argsort(full_at, axis=1, kind="stable")
    capacity, weight = (np.take_along_axis(array, order, axis=1) for array in (capacity, weight))
    full_at = np.take_along_axis(full_at, order, axis=1)
    total = np.minimum(budget, capacity.sum(axis=1))[:, None]
    before = np.cumsum(capacity, axis=1) - capacity
    from_here = np.cumsum(weight[:, ::-1], axis=1)[:, ::-1]
    level = np.divide(total - before, from_here, out=np.zeros(weight.shape), where=from_here > 0)
    # Full are those before the first whose level the water does not reach.
    everything = before[:, -1:] + capacity[:, -1:] == total
    full = (np.logical_and.accumulate(level >= full_at, axis=1) | everything) & (weight > 0)
    rest = total[:, 0] - np.where(full, capacity, 0).sum(axis=1)
    weight = np.where(full, 0.0, weight)
    open_weight = weight.sum(axis=1)
    scale = np.divide(rest, open_weight, out=np.zeros(len(rest)), where=open_weight > 0)
    edges = np.floor(np.cumsum(weight * scale[:, None], axis=1) + offset[:, None]).astype(np.int64)
    # After the last open one the sum is `rest` by definition, whatever the rounding of the floats says.
    after = np.cumsum(weight[:, ::-1], axis=1)[:, ::-1] - weight
    edges = np.where(after > 0, np.minimum(edges, rest[:, None]), rest[:, None])
    counts = np.minimum(np.where(full, capacity, np.diff(edges, axis=1, prepend=0)), capacity)
    result = np.empty_like(counts)
    np.put_along_axis(result, order, counts, axis=1)
    # Beside the greatest, the faint ones look alike; where some that are not faint are full, the rest is shared anew.
    faint = (room > 0) & (log_shares - peak < SMALLEST_LOG_SHARE)
    done = np.take_along_axis(full, np.argsort(order, axis=1), axis=1) & ~faint
    again = np.flatnonzero(faint.any(axis=1) & done.any(axis=1))
    if len(again):
        given = np.where(done, room, 0)[again]
        left = budget[again] - given.sum(axis=1)
        result[again] = given + fill(log_shares[again], room[again] - given, left, offset[again])
    return result


def fill_with_limit(
    log_shares: Floats, capacity: Ints, budget: Ints, offset: Floats, group: npt.NDArray[np.bool_], limit: Ints
) -> Ints:
    """As `fill`, and the modalities of `group` (`rows modalities`) get at most `limit` (`rows`) tokens together."""
    counts = fill(log_shares, capacity, budget, offset)
    over = np.flatnonzero(np.where(group, counts, 0).sum(axis=1) > limit)
    if len(over):
        logs, room, inside, most = log_shares[over], capacity[over], group[over], limit[over]
        counts[over] = fill(logs, np.where(inside, room, 0), most, offset[over]) + fill(
            logs, np.where(inside, 0, room), budget[over] - most, offset[over]
        )
    return counts


def after_others(log_shares: Floats, last: npt.NDArray[np.bool_]) -> Floats:
    """The same shares, but those of `last` (`rows modalities`) get only what the others of their row leave."""
    rows = np.flatnonzero(last.any(axis=1))
    if not len(rows):
        return log_shares
    result, behind = log_shares.copy(), last[rows]
    least = np.where(behind, np.inf, log_shares[rows]).min(axis=1, keepdims=True)
    most = np.where(behind, log_shares[rows], -np.inf).max(axis=1, keepdims=True)
    result[rows] -= np.where(behind, most - least - 2 * SMALLEST_LOG_SHARE, 0.0)
    return result
