// Products of matrices of float or double whose columns are whole vectors, and what the kernels share besides.

#pragma once

#include <immintrin.h>

#include <algorithm>
#include <cstdint>
#include <type_traits>
#include <vector>

namespace {

#ifdef __AVX512F__
constexpr long kBytes = 64, kRows = 8;
#else
constexpr long kBytes = 32, kRows = 4;
#endif
constexpr long kVectors = 3;
constexpr long kStreamed = 1 << 19;  // numbers kept for backward: of more, little is in a core's cache when it comes

template <typename Real> struct Simd {
    typedef Real Vector __attribute__((vector_size(kBytes), aligned(sizeof(Real)), may_alias));
    static constexpr long size = kBytes / sizeof(Real);
};

template <typename Real> using Vector = typename Simd<Real>::Vector;

template <typename Real> Vector<Real> load(const Real *at) { return *reinterpret_cast<const Vector<Real> *>(at); }

template <typename Real> void store(Real *at, Vector<Real> values) { *reinterpret_cast<Vector<Real> *>(at) = values; }

// A vector past the caches, to a multiple of its size; to be followed by _mm_sfence before another thread reads.
template <typename Real> void stream(Vector<Real> values, Real *to) {
#ifdef __AVX512F__
    _mm512_stream_si512(reinterpret_cast<__m512i *>(to), (__m512i)values);
#else
    _mm256_stream_si256(reinterpret_cast<__m256i *>(to), (__m256i)values);
#endif
}

// As std::copy_n, past the caches; likewise to be followed.
template <typename Real> void stream(const Real *from, long count, Real *to) {
    long n = 0;
    for (; n < count && reinterpret_cast<std::uintptr_t>(to + n) % kBytes; n++) to[n] = from[n];
    for (; n + Simd<Real>::size <= count; n += Simd<Real>::size) stream<Real>(load(from + n), to + n);
    for (; n < count; n++) to[n] = from[n];
}

// Not below zero; NaN stays. The compiler would take two instructions.
template <typename Real> Vector<Real> rectified(Vector<Real> values) {
#ifdef __AVX512F__
    if constexpr (std::is_same_v<Real, float>)
        return (Vector<Real>)_mm512_max_ps(__m512{}, (__m512)values);
    else
        return (Vector<Real>)_mm512_max_pd(__m512d{}, (__m512d)values);
#else
    if constexpr (std::is_same_v<Real, float>)
        return (Vector<Real>)_mm256_max_ps(__m256{}, (__m256)values);
    else
        return (Vector<Real>)_mm256_max_pd(__m256d{}, (__m256d)values);
#endif
}

template <typename Real> Real sum(Vector<Real> values) {
    alignas(kBytes) Real parts[Simd<Real>::size];
    store(parts, values);
    for (long half = Simd<Real>::size / 2; half > 0; half /= 2)
        for (long i = 0; i < half; i++) parts[i] += parts[i + half];
    return parts[0];
}

// A row-major matrix, or with swapped strides the transpose of one.
template <typename Real> struct Matrix {
    const Real *at;
    long row, column;
};

// Rows that are so far apart, of whole vectors.
template <typename Real> struct Rows {
    Real *at;
    long stride;
    operator Rows<const Real>() const { return {at, stride}; }
    Rows from(long row, long column) const { return {at + row * stride + column, stride}; }
    Real *operator[](long row) const { return at + row * stride; }
};

// What becomes of a product: it alone, C + it, max(0, it + bias), that also into `far` past the caches, it but 0 where
// `with` is not positive, or C + that.
enum class Then { nothing, add, relu, relu_and_stream, where, add_where };

constexpr bool rectifies(Then then) { return then == Then::relu || then == Then::relu_and_stream; }

constexpr bool masks(Then then) { return then == Then::where || then == Then::add_where; }

template <typename Real, Then then, int rows, int vectors>
[[gnu::always_inline]] inline void product_tile(long depth, Matrix<Real> a, Rows<const Real> b, Rows<Real> c,
                                                Rows<const Real> with, Rows<Real> far) {
    Vector<Real> sums[rows][vectors];
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 3
        for (int v = 0; v < vectors; v++) {
            const long at = v * Simd<Real>::size;
            if (masks(then)) __builtin_prefetch(with[r] + at);  // while the sums are made, it comes from far away
            sums[r][v] =
                then == Then::add ? load(c[r] + at) : Vector<Real>{} + (rectifies(then) ? *with[r] : Real(0));
        }
#pragma GCC unroll 4
    for (long k = 0; k < depth; k++) {
        Vector<Real> row[vectors];
#pragma GCC unroll 3
        for (int v = 0; v < vectors; v++) row[v] = load(b[k] + v * Simd<Real>::size);
#pragma GCC unroll 8
        for (int r = 0; r < rows; r++) {
            const Real factor = a.at[r * a.row + k * a.column];
#pragma GCC unroll 3
            for (int v = 0; v < vectors; v++) sums[r][v] += factor * row[v];
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 3
        for (int v = 0; v < vectors; v++) {
            const long at = v * Simd<Real>::size;
            Vector<Real> result = sums[r][v];
            if (rectifies(then)) result = rectified<Real>(result);
            if (masks(then)) result = load(with[r] + at) <= 0 ? Vector<Real>{} : result;
            if (then == Then::add_where) result += load(c[r] + at);
            store(c[r] + at, result);
            if (then == Then::relu_and_stream) stream<Real>(result, far[r] + at);
        }
}

// Some columns of a product: tiles of `tall` rows, then what is left.
template <typename Real, Then then, int vectors, int tall = kRows>
[[gnu::noinline]] void product_columns(long rows, long depth, Matrix<Real> a, Rows<const Real> b, Rows<Real> c,
                                       Rows<const Real> with, Rows<Real> far) {
    if constexpr (tall > 0) {
        for (; rows >= tall; rows -= tall, c.at += tall * c.stride, with.at += tall * with.stride) {
            product_tile<Real, then, tall, vectors>(depth, a, b, c, with, far);
            a.at += tall * a.row, far.at += tall * far.stride;
        }
        product_columns<Real, then, vectors, tall - 1>(rows, depth, a, b, c, with, far);
    }
}

template <typename Real> long whole_vectors(long columns) {
    return (columns + Simd<Real>::size - 1) / Simd<Real>::size * Simd<Real>::size;
}

// How far apart rows are: an odd number of vectors, which does not put many on the same few places of a cache.
template <typename Real> long apart(long columns) {
    return whole_vectors<Real>(columns) / Simd<Real>::size / 2 * 2 * Simd<Real>::size + Simd<Real>::size;
}

// C = A B, or what else becomes of it, of so many columns, whole vectors. `with` is a bias for each row, or what masks.
template <typename Real, Then then = Then::nothing>
void product(long rows, long depth, long columns, Matrix<Real> a, Rows<const Real> b, Rows<Real> c,
             Rows<const Real> with = {nullptr, 0}, Rows<Real> far = {nullptr, 0}) {
    for (long n = 0, vectors; n < columns; n += vectors * Simd<Real>::size) {
        const long left = (columns - n) / Simd<Real>::size;
        vectors = left == kVectors + 1 ? 2 : std::min(kVectors, left);  // a tile of one would wait for its sums
        const Rows<const Real> right = b.from(0, n), beside{with.at + (masks(then) ? n : 0), with.stride};
        const Rows<Real> result = c.from(0, n), beyond{far.at + (then == Then::relu_and_stream ? n : 0), far.stride};
        switch (vectors) {
        case 1: product_columns<Real, then, 1>(rows, depth, a, right, result, beside, beyond); break;
        case 2: product_columns<Real, then, 2>(rows, depth, a, right, result, beside, beyond); break;
        default: product_columns<Real, then, 3>(rows, depth, a, right, result, beside, beyond);
        }
    }
}

// Adds to each of some numbers the sum of a vector.
template <int count, typename Real> void add_sums_to(const Vector<Real> (&values)[count], Real *to) {
#ifdef __AVX512F__
    if constexpr (count == 8 && std::is_same_v<Real, float>) {
        __m256 halves[8];
        for (int i = 0; i < 8; i++) {
            const __m256d upper = _mm512_extractf64x4_pd(_mm512_castps_pd(values[i]), 1);
            halves[i] = _mm256_add_ps(_mm512_castps512_ps256(values[i]), _mm256_castpd_ps(upper));
        }
        auto quarter = [](const __m256 *four) {  // of each, in the lower and the upper lane
            return _mm256_hadd_ps(_mm256_hadd_ps(four[0], four[1]), _mm256_hadd_ps(four[2], four[3]));
        };
        const __m256 low = quarter(halves), high = quarter(halves + 4);
        const __m256 sums =
            _mm256_add_ps(_mm256_permute2f128_ps(low, high, 0x20), _mm256_permute2f128_ps(low, high, 0x31));
        _mm256_storeu_ps(to, _mm256_add_ps(_mm256_loadu_ps(to), sums));
        return;
    }
#elif defined(__AVX2__)
    if constexpr (count == 4 && std::is_same_v<Real, float>) {
        const __m256 pairs = _mm256_hadd_ps(_mm256_hadd_ps(values[0], values[1]), _mm256_hadd_ps(values[2], values[3]));
        const __m128 sums = _mm_add_ps(_mm256_castps256_ps128(pairs), _mm256_extractf128_ps(pairs, 1));
        _mm_storeu_ps(to, _mm_add_ps(_mm_loadu_ps(to), sums));
        return;
    }
#endif
    for (int i = 0; i < count; i++) to[i] += sum<Real>(values[i]);
}

template <typename Real, int rows, int others>
[[gnu::noinline]] void dots_tile(long columns, Rows<const Real> a, Rows<const Real> b, Real *c, long stride) {
    Vector<Real> sums[rows][others] = {};
#pragma GCC unroll 4
    for (long n = 0; n < columns; n += Simd<Real>::size) {
        Vector<Real> own[rows];
#pragma GCC unroll 3
        for (int r = 0; r < rows; r++) own[r] = load(a[r] + n);
#pragma GCC unroll 8
        for (int o = 0; o < others; o++) {
            const Vector<Real> other = load(b[o] + n);
#pragma GCC unroll 3
            for (int r = 0; r < rows; r++) sums[r][o] += own[r] * other;
        }
    }
#pragma GCC unroll 3
    for (int r = 0; r < rows; r++) add_sums_to<others, Real>(sums[r], c + r * stride);
}

template <typename Real, int rows, int others = kRows>
void dots_others(long left, long columns, Rows<const Real> a, Rows<const Real> b, Real *c, long stride) {
    if constexpr (others > 0) {
        if (left >= others)
            dots_tile<Real, rows, others>(columns, a, b, c, stride);
        else
            dots_others<Real, rows, others - 1>(left, columns, a, b, c, stride);
    }
}

// C[rows, others] += A B^T.
template <typename Real>
void add_dots(long rows, long others, long columns, Rows<const Real> a, Rows<const Real> b, Real *c) {
    for (long o = 0; o < others; o += kRows)
        for (long m = 0; m < rows; m += 3) {
            const Rows<const Real> left = a.from(m, 0), right = b.from(o, 0);
            Real *out = c + m * others + o;
            switch (std::min(3L, rows - m)) {
            case 1: dots_others<Real, 1>(others - o, columns, left, right, out, others); break;
            case 2: dots_others<Real, 2>(others - o, columns, left, right, out, others); break;
            default: dots_others<Real, 3>(others - o, columns, left, right, out, others);
            }
        }
}

template <typename Real> void add_sums(long rows, long columns, Rows<const Real> a, Real *sums) {
    for (long r = 0; r < rows; r++) {
        Vector<Real> total{};
        for (long n = 0; n < columns; n += Simd<Real>::size) total += load(a[r] + n);
        sums[r] += sum<Real>(total);
    }
}

// Where shares of some blocks start, the last of them at the end; they become smaller.
std::vector<long> shares(long blocks, long threads) {
    std::vector<long> starts{0};
    for (long left = blocks; left > 0; left = blocks - starts.back())
        starts.push_back(starts.back() + std::max(1L, left / (2 * threads - 1)));
    return starts;
}

// Calls `add(block, sums)`, which adds to `count` sums, for all blocks in threads, and writes the sums of all. A thread
// that is done with a share takes the next, so that all end together, though one may be slower; each share has sums of
// its own, which are added up in order, so that they are the same at each call.
template <typename Real, typename Add> void add_shares(long blocks, int threads, long count, Real *sums, Add add) {
    const std::vector<long> starts = shares(blocks, threads);
    std::vector<std::vector<Real>> found(starts.size() - 1);
#pragma omp parallel num_threads(threads)
    {
#pragma omp for schedule(dynamic)
        for (size_t share = 0; share < found.size(); share++) {
            found[share].resize(count);
            for (long b = starts[share]; b < starts[share + 1]; b++) add(b, found[share].data());
        }
#pragma omp for schedule(static)
        for (long start = 0; start < count; start += 4096) {
            const long end = std::min(count, start + 4096);
            std::fill(sums + start, sums + end, Real(0));
            for (const auto &own : found)
                for (long n = start; n < end; n++) sums[n] += own[n];
        }
    }
}

// Numbers that a thread keeps from call to call, from a multiple of 64 bytes on.
template <typename Real> Real *scratch(long count) {
    thread_local std::vector<Real> kept;
    const long more = 64 / sizeof(Real);
    if (long(kept.size()) < count + more) kept.resize(count + more);
    return reinterpret_cast<Real *>((reinterpret_cast<std::uintptr_t>(kept.data()) + 63) / 64 * 64);
}

// Hands out parts of such numbers, for matrices whose rows are so far apart.
template <typename Real> class Room {
    Real *at;
    long stride;

  public:
    Room(long count, long stride) : at(scratch<Real>(count)), stride(stride) {}
    Rows<Real> rows(long count) {
        at += count * stride;
        return {at - count * stride, stride};
    }
};

}  // namespace
