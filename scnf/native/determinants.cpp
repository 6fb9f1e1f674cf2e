// The inverse of a small matrix and the logarithm of its determinant.

#include <cmath>
#include <numeric>

#include "matrices.h"

namespace {

struct Sizes {
    long size;
};

// Gauss-Jordan elimination in place, with the largest number of a column, or one that is none, as its pivot; each row
// is divided by its pivot at the end. Then row k is a row of the inverse, whose columns are in the order in which rows
// became pivots. A singular matrix has none: NaN.
template <typename Real> Real invert(long size, const Real *matrix, Real *inverse_transposed) {
    Real *work = scratch<Real>(size * size + size), *pivots = work + size * size;
    std::copy_n(matrix, size * size, work);
    std::vector<long> order(size);
    std::iota(order.begin(), order.end(), 0);
    Real log_determinant = 0;
    for (long k = 0; k < size; k++) {
        long pivot = k;
        for (long row = k + 1; row < size && !std::isnan(work[pivot * size + k]); row++)
            if (!(std::abs(work[row * size + k]) <= std::abs(work[pivot * size + k]))) pivot = row;
        Real *own = work + k * size;
        if (pivot != k) std::swap_ranges(own, own + size, work + pivot * size);
        std::swap(order[k], order[pivot]);
        pivots[k] = own[k];
        if (pivots[k] == 0) {
            std::fill_n(inverse_transposed, size * size, Real(NAN));
            const bool numbers = std::none_of(work, work + size * size, [](Real value) { return std::isnan(value); });
            return numbers ? -INFINITY : NAN;
        }
        log_determinant += std::log(std::abs(pivots[k]));
        own[k] = 1;
        for (long row = 0; row < size; row++) {
            if (row == k) continue;
            Real *other = work + row * size;
            const Real times = other[k] / pivots[k];
            other[k] = 0;
            for (long column = 0; column < size; column++) other[column] -= times * own[column];
        }
    }
    for (long column = 0; column < size; column++)
        for (long row = 0; row < size; row++)
            inverse_transposed[order[column] * size + row] = work[row * size + column] / pivots[row];
    return log_determinant;
}

}  // namespace

// Dense matrices [size, size], and one number.
#define ENTRY_POINTS(Real, name)                                                                                       \
    extern "C" void log_abs_det_##name(const Sizes *of, int, const Real *matrix, Real *inverse_transposed,             \
                                       Real *log_abs_det) {                                                            \
        *log_abs_det = invert<Real>(of->size, matrix, inverse_transposed);                                             \
    }

ENTRY_POINTS(float, float32)
ENTRY_POINTS(double, float64)
