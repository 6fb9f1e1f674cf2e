// Numbers looked up in a table, and its gradient: sums of the numbers that have the same index.

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
    }

ENTRY_POINTS(float, float32)
ENTRY_POINTS(double, float64)
