// Numbers looked up in a table, its gradient, which is sums of the numbers that have the same index, and the search for
// numbers in an ascending table.

#include <algorithm>
#include <cmath>

#include "matrices.h"

namespace {

constexpr long kChains = 4;  // tables of sums that take numbers in turns: an addition need not wait for the last

struct Sizes {
    long count, entries;
};

// NaN where there is no such entry.
template <typename Real>
void look_up(const Sizes &of, int threads, const Real *table, const std::int32_t *index, Real *values) {
    const auto entries = static_cast<std::uint32_t>(of.entries);
#pragma omp parallel for schedule(static) num_threads(threads)
    for (long n = 0; n < of.count; n++)
        values[n] = static_cast<std::uint32_t>(index[n]) < entries ? table[index[n]] : Real(NAN);
}

// Numbers whose index is that of no entry go into none.
template <typename Real>
void sums_by_index(const Sizes &of, int threads, const Real *values, const std::int32_t *index, Real *sums) {
    const auto entries = static_cast<std::uint32_t>(of.entries);
    add_shares(threads, threads, of.entries, sums, [&](long share, Real *own) {
        std::vector<Real> chains(kChains * of.entries);
        Real *chain[kChains];
        for (long c = 0; c < kChains; c++) chain[c] = chains.data() + c * of.entries;
        long n = of.count * share / threads;
        const long end = of.count * (share + 1) / threads;
        auto add = [&](long n, Real *to) {
            if (static_cast<std::uint32_t>(index[n]) < entries) to[index[n]] += values[n];
        };
        for (; n + kChains <= end; n += kChains)
#pragma GCC unroll 4
            for (long c = 0; c < kChains; c++) add(n + c, chain[c]);
        for (; n < end; n++) add(n, chain[0]);
        for (size_t n = 0; n < chains.size(); n++) own[n % of.entries] += chains[n];
    });
}

constexpr long kBlock = 64;  // values that are searched together, so that a step takes vectors of them

// The number of entries that are at most each value; all of them for NaN. The entries ascend.
template <typename Real>
void intervals(const Sizes &of, int threads, const Real *table, const Real *values, std::int32_t *index) {
    std::int32_t top = 1;
    while (top <= of.entries) top *= 2;
    std::vector<Real> padded(top, Real(INFINITY));  // for bisections without a test of the end
    std::copy(table, table + of.entries, padded.begin() + 1);
    const Real *entry = padded.data();  // the one that brings the count to its index
    const auto entries = static_cast<std::int32_t>(of.entries);
#pragma omp parallel for schedule(static) num_threads(threads)
    for (long start = 0; start < of.count; start += kBlock) {
        const long size = std::min(kBlock, of.count - start);
        std::int32_t found[kBlock] = {};
        for (std::int32_t step = top / 2; step; step /= 2)
            for (long n = 0; n < size; n++)
                found[n] += entry[found[n] + step] > values[start + n] ? 0 : step;
        for (long n = 0; n < size; n++) index[start + n] = std::min(found[n], entries);
    }
}

}  // namespace

// Dense: the table and its sums [entries], values and indices [count].
#define ENTRY_POINTS(Real, name)                                                                                       \
    extern "C" void look_up_##name(const Sizes *of, int threads, const Real *table, const std::int32_t *index,         \
                                   Real *values) {                                                                     \
        look_up<Real>(*of, threads, table, index, values);                                                             \
    }                                                                                                                  \
    extern "C" void sums_by_index_##name(const Sizes *of, int threads, const Real *values, const std::int32_t *index,  \
                                         Real *sums) {                                                                 \
        sums_by_index<Real>(*of, threads, values, index, sums);                                                        \
    }                                                                                                                  \
    extern "C" void intervals_##name(const Sizes *of, int threads, const Real *table, const Real *values,              \
                                     std::int32_t *index) {                                                            \
        intervals<Real>(*of, threads, table, values, index);                                                           \
    }

ENTRY_POINTS(float, float32)
ENTRY_POINTS(double, float64)
