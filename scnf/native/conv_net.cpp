// A network of 3x3 -> ReLU -> 1x1 -> ReLU -> 3x3 convolutions on images, and its gradients, in one pass over memory;
// and the gradient at the weights of a single 3x3 convolution.
//
// The network takes images a few at a time, so that all that lies between input and output stays in the cache of one
// core. Of it, backward is given the second hidden layer, and computes the first again. Every array of such a block is
// a matrix with a row for each channel (or channel and tap of a 3x3 window) and a column for each pixel, padded to
// whole vectors.

#include <immintrin.h>
#include <omp.h>

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <type_traits>
#include <vector>

namespace {

#ifdef __AVX512F__
constexpr long kBytes = 64, kRows = 8;
#else
constexpr long kBytes = 32, kRows = 4;
#endif
constexpr long kVectors = 3;
constexpr long kBlock = 24576;  // numbers of a hidden layer in a block: four of them fit into half a megabyte
constexpr long kPixels = 64;    // of three vectors each: they stay in the first-level cache

template <typename Real> struct Simd {
    typedef Real Vector __attribute__((vector_size(kBytes), aligned(sizeof(Real)), may_alias));
    static constexpr long size = kBytes / sizeof(Real);
};

template <typename Real> using Vector = typename Simd<Real>::Vector;

template <typename Real> Vector<Real> load(const Real *at) { return *reinterpret_cast<const Vector<Real> *>(at); }

template <typename Real> void store(Real *at, Vector<Real> values) { *reinterpret_cast<Vector<Real> *>(at) = values; }

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

// What becomes of a product: it alone, C + product, max(0, product + bias), or 0 where `with` is not positive.
enum class Then { nothing, add, relu, where };

template <typename Real, Then then, int rows, int vectors>
[[gnu::always_inline]] inline void product_tile(long depth, Matrix<Real> a, const Real *b, long stride, Real *c,
                                                const Real *with) {
    Vector<Real> sums[rows][vectors];
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 3
        for (int v = 0; v < vectors; v++)
            sums[r][v] = then == Then::add ? load(c + r * stride + v * Simd<Real>::size)
                                           : Vector<Real>{} + (then == Then::relu ? with[r] : Real(0));
#pragma GCC unroll 4
    for (long k = 0; k < depth; k++) {
        Vector<Real> row[vectors];
#pragma GCC unroll 3
        for (int v = 0; v < vectors; v++) row[v] = load(b + k * stride + v * Simd<Real>::size);
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
            const long at = r * stride + v * Simd<Real>::size;
            Vector<Real> result = sums[r][v];
            if (then == Then::relu) result = result < 0 ? Vector<Real>{} : result;  // NaN stays
            if (then == Then::where) result = load(with + at) <= 0 ? Vector<Real>{} : result;
            store(c + at, result);
        }
}

// Some columns of a product: tiles of `tall` rows, then what is left.
template <typename Real, Then then, int vectors, int tall = kRows>
void product_columns(long rows, long depth, Matrix<Real> a, const Real *b, long stride, Real *c, const Real *with) {
    if constexpr (tall > 0) {
        for (; rows >= tall; rows -= tall, c += tall * stride) {
            product_tile<Real, then, tall, vectors>(depth, a, b, stride, c, with);
            a.at += tall * a.row;
            if (then == Then::relu) with += tall;
            if (then == Then::where) with += tall * stride;
        }
        product_columns<Real, then, vectors, tall - 1>(rows, depth, a, b, stride, c, with);
    }
}

// C = A B, or what else becomes of it; B and C have `columns` columns, whole vectors.
template <typename Real, Then then = Then::nothing>
void product(long rows, long depth, long columns, Matrix<Real> a, const Real *b, Real *c, const Real *with = nullptr) {
    for (long n = 0, vectors; n < columns; n += vectors * Simd<Real>::size) {
        const long left = (columns - n) / Simd<Real>::size;
        vectors = left == kVectors + 1 ? 2 : std::min(kVectors, left);  // a tile of one would wait for its sums
        const Real *beside = then == Then::where ? with + n : with;
        switch (vectors) {
        case 1: product_columns<Real, then, 1>(rows, depth, a, b + n, columns, c + n, beside); break;
        case 2: product_columns<Real, then, 2>(rows, depth, a, b + n, columns, c + n, beside); break;
        default: product_columns<Real, then, 3>(rows, depth, a, b + n, columns, c + n, beside);
        }
    }
}

// Adds to each of some numbers the sum of a vector.
template <int count, typename Real> void add_sums_to(const Vector<Real> (&values)[count], Real *to) {
#if defined(__AVX2__) && !defined(__AVX512F__)
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
void dots_tile(long columns, const Real *a, const Real *b, Real *c, long stride) {
    Vector<Real> sums[rows][others] = {};
#pragma GCC unroll 4
    for (long n = 0; n < columns; n += Simd<Real>::size) {
        Vector<Real> own[rows];
#pragma GCC unroll 3
        for (int r = 0; r < rows; r++) own[r] = load(a + r * columns + n);
#pragma GCC unroll 8
        for (int o = 0; o < others; o++) {
            const Vector<Real> other = load(b + o * columns + n);
#pragma GCC unroll 3
            for (int r = 0; r < rows; r++) sums[r][o] += own[r] * other;
        }
    }
#pragma GCC unroll 3
    for (int r = 0; r < rows; r++) add_sums_to<others, Real>(sums[r], c + r * stride);
}

template <typename Real, int rows, int others = kRows>
void dots_others(long left, long columns, const Real *a, const Real *b, Real *c, long stride) {
    if constexpr (others > 0) {
        if (left >= others)
            dots_tile<Real, rows, others>(columns, a, b, c, stride);
        else
            dots_others<Real, rows, others - 1>(left, columns, a, b, c, stride);
    }
}

// C[rows, others] += A B^T; A and B have `columns` columns.
template <typename Real> void add_dots(long rows, long others, long columns, const Real *a, const Real *b, Real *c) {
    for (long o = 0; o < others; o += kRows)
        for (long m = 0; m < rows; m += 3) {
            const Real *left = a + m * columns, *right = b + o * columns;
            Real *out = c + m * others + o;
            switch (std::min(3L, rows - m)) {
            case 1: dots_others<Real, 1>(others - o, columns, left, right, out, others); break;
            case 2: dots_others<Real, 2>(others - o, columns, left, right, out, others); break;
            default: dots_others<Real, 3>(others - o, columns, left, right, out, others);
            }
        }
}

template <typename Real> void add_sums(long rows, long columns, const Real *a, Real *sums) {
    for (long r = 0; r < rows; r++) {
        Vector<Real> total{};
        for (long n = 0; n < columns; n += Simd<Real>::size) total += load(a + r * columns + n);
        sums[r] += sum<Real>(total);
    }
}

// Where the row of a channel and a tap of the 3x3 window stands in a matrix.
struct Order {
    long channel, tap;
};

struct Sizes {
    long images, channels, hidden, outputs, height, width;

    long pixels() const { return height * width; }
    long block() const {
        const long most = kBlock / std::max({hidden, 4 * channels, 4 * outputs});
        return std::max(1L, (most + pixels() / 2) / pixels());
    }
    // As many for each thread, of nearly as many images, and none of more than `block`; where block b starts.
    long blocks(long threads) const {
        const long together = block() * threads;
        return std::min(images, (images + together - 1) / together * threads);
    }
    long start(long b, long blocks) const { return b * images / blocks; }
    // Whole vectors, but not as many as would put all rows on the same few places of a cache.
    template <typename Real> long columns(long count) const {
        constexpr long size = Simd<Real>::size;
        const long whole = (count * pixels() + size - 1) / size * size;
        return whole * sizeof(Real) % 512 ? whole : whole + size;
    }

    // As the weights with channels last have them: [hidden, tap, channel] and [output, tap, hidden].
    Order enter() const { return {1, channels}; }
    Order leave() const { return {9, 1}; }
};

// Where shares of some blocks start, the last of them at the end. A thread takes the next when it is done with one; they
// become smaller, so that all threads end together, though one may be slower. They are the same at each call.
std::vector<long> shares(long blocks, long threads) {
    std::vector<long> starts{0};
    const long least = 1 + (blocks - 1) / (16 * threads);
    for (long left = blocks; left > 0; left = blocks - starts.back())
        starts.push_back(starts.back() + std::min(left, std::max(least, left / (2 * threads - 1))));
    return starts;
}

// The pixels p of an image, from `first` up to `last` in row-major order, for which p + `by` is one; where `edge` is not
// negative, without this column, whose neighbour would be at the other end of another row.
struct Shift {
    long by, first, last, edge;
    Shift(const Sizes &of, long down, long right)
        : by(down * of.width + right), first(std::min(of.pixels(), std::max(0L, -by))),
          last(std::max(0L, of.pixels() - std::max(0L, by))), edge(right == 0 ? -1 : right < 0 ? 0 : of.width - 1) {}
};

// matrix[channel and tap][image and pixel] = pixel of the image, moved by the tap (`sign` 1) or against it (-1).
template <typename Real>
void unfold(const Sizes &of, long count, long channels, Order order, long sign, const Real *images, long image,
            long channel, Real *matrix, long columns) {
    for (long c = 0; c < channels; c++)
        for (long tap = 0; tap < 9; tap++) {
            Real *row = matrix + (c * order.channel + tap * order.tap) * columns;
            const Shift move(of, sign * (tap / 3 - 1), sign * (tap % 3 - 1));
            for (long n = 0; n < count; n++, row += of.pixels()) {
                const Real *from = images + n * image + c * channel + move.by;
                std::fill(row, row + move.first, Real(0));
                std::copy(from + move.first, from + move.last, row + move.first);
                std::fill(row + move.last, row + of.pixels(), Real(0));
                if (move.edge >= 0)
                    for (long p = move.edge; p < of.pixels(); p += of.width) row[p] = 0;
            }
            std::fill(row, row + columns - count * of.pixels(), Real(0));
        }
}

// The transpose of `unfold`, added to `images`, which are dense. It writes zeros into the matrix.
template <typename Real>
void fold(const Sizes &of, long count, long channels, Order order, long sign, Real *matrix, long columns,
          Real *images) {
    for (long c = 0; c < channels; c++)
        for (long tap = 0; tap < 9; tap++) {
            Real *row = matrix + (c * order.channel + tap * order.tap) * columns;
            const Shift move(of, sign * (tap / 3 - 1), sign * (tap % 3 - 1));
            for (long n = 0; n < count; n++, row += of.pixels()) {
                Real *to = images + (n * channels + c) * of.pixels() + move.by;
                if (move.edge >= 0)
                    for (long p = move.edge; p < of.pixels(); p += of.width) row[p] = 0;
                for (long p = move.first; p < move.last; p++) to[p] += row[p];
            }
        }
}

// Between a matrix with a row for each channel and a column for each image and pixel, and dense images.
template <typename Real>
void to_images(const Sizes &of, long count, long channels, const Real *matrix, long columns, Real *images) {
    for (long n = 0; n < count; n++)
        for (long c = 0; c < channels; c++, images += of.pixels())
            std::copy_n(matrix + c * columns + n * of.pixels(), of.pixels(), images);
}

template <typename Real>
void from_images(const Sizes &of, long count, long channels, const Real *images, Real *matrix, long columns) {
    for (long n = 0; n < count; n++)
        for (long c = 0; c < channels; c++, images += of.pixels())
            std::copy_n(images, of.pixels(), matrix + c * columns + n * of.pixels());
    for (long c = 0; c < channels; c++)
        std::fill(matrix + c * columns + count * of.pixels(), matrix + (c + 1) * columns, Real(0));
}

// Numbers that a thread keeps from call to call, from a multiple of 64 bytes on.
template <typename Real> Real *scratch(long count) {
    thread_local std::vector<Real> kept;
    const long more = 64 / sizeof(Real);
    if (long(kept.size()) < count + more) kept.resize(count + more);
    return reinterpret_cast<Real *>((reinterpret_cast<std::uintptr_t>(kept.data()) + 63) / 64 * 64);
}

template <typename Real> struct Layers {
    Real *enter, *enter_bias, *middle, *middle_bias, *leave, *leave_bias;
};

template <typename Real> struct Input {
    const Real *at;
    long image, channel;
    Input from(long start) const { return {at + start * image, image, channel}; }
};

// Of some images: taps of x, and the first hidden layer.
template <typename Real>
void first_layer(const Sizes &of, long count, Input<Real> x, const Layers<const Real> &w, long columns, Real *taps,
                 Real *first) {
    const long inputs = 9 * of.channels;
    unfold(of, count, of.channels, of.enter(), 1, x.at, x.image, x.channel, taps, columns);
    product<Real, Then::relu>(of.hidden, inputs, columns, {w.enter, inputs, 1}, taps, first, w.enter_bias);
}

template <typename Real>
void forward(const Sizes &of, int threads, Input<Real> x, Layers<const Real> w, Real *y, Real *kept) {
    const long inputs = 9 * of.channels, outputs = 9 * of.outputs;
    const long most = of.columns<Real>(of.block()), blocks = of.blocks(threads);
#pragma omp parallel for schedule(dynamic) num_threads(threads)
    for (long b = 0; b < blocks; b++) {
        const long start = of.start(b, blocks), count = of.start(b + 1, blocks) - start;
        const long columns = of.columns<Real>(count);
        Real *taps = scratch<Real>((inputs + 2 * of.hidden + outputs) * most);
        Real *first = taps + inputs * most, *second = first + of.hidden * most, *last = second + of.hidden * most;
        first_layer(of, count, x.from(start), w, columns, taps, first);
        product<Real, Then::relu>(of.hidden, of.hidden, columns, {w.middle, of.hidden, 1}, first, second,
                                  w.middle_bias);
        if (kept) to_images(of, count, of.hidden, second, columns, kept + start * of.hidden * of.pixels());
        product<Real>(outputs, of.hidden, columns, {w.leave, of.hidden, 1}, second, last);
        Real *out = y + start * of.outputs * of.pixels();
        for (long n = 0; n < count * of.outputs; n++)
            std::fill_n(out + n * of.pixels(), of.pixels(), w.leave_bias[n % of.outputs]);
        fold(of, count, of.outputs, of.leave(), -1, last, columns, out);
    }
}

template <typename Real>
void backward(const Sizes &of, int threads, Input<Real> x, const Real *kept, Layers<const Real> w, const Real *grad_y,
              Real *grad_x, Real *const *grad_w) {
    const long inputs = 9 * of.channels, outputs = 9 * of.outputs;
    const long most = of.columns<Real>(of.block()), blocks = of.blocks(threads);
    const long counts[] = {of.hidden * inputs, of.hidden, of.hidden * of.hidden, of.hidden, outputs * of.hidden,
                           of.outputs};
    const std::vector<long> starts = shares(blocks, threads);
    std::vector<std::vector<Real>> found(starts.size() - 1);  // the gradients of each share, added up in order
#pragma omp parallel for schedule(dynamic) num_threads(threads)
    for (size_t share = 0; share < found.size(); share++) {
        found[share].resize(std::accumulate(counts, counts + 6, 0L));
        Real *own[6] = {found[share].data()};
        for (int i = 1; i < 6; i++) own[i] = own[i - 1] + counts[i - 1];
        for (long b = starts[share]; b < starts[share + 1]; b++) {
            const long start = of.start(b, blocks), count = of.start(b + 1, blocks) - start;
            const long columns = of.columns<Real>(count);
            Real *taps = scratch<Real>((2 * inputs + 4 * of.hidden + outputs) * most);
            Real *first = taps + inputs * most, *second = first + of.hidden * most;
            Real *grad_taps = second + of.hidden * most, *grad_first = grad_taps + inputs * most;
            Real *grad_second = grad_first + of.hidden * most, *grad_last = grad_second + of.hidden * most;
            first_layer(of, count, x.from(start), w, columns, taps, first);
            from_images(of, count, of.hidden, kept + start * of.hidden * of.pixels(), second, columns);
            const Real *grad = grad_y + start * of.outputs * of.pixels();
            unfold(of, count, of.outputs, of.leave(), -1, grad, of.outputs * of.pixels(), of.pixels(), grad_last,
                   columns);
            product<Real, Then::where>(of.hidden, outputs, columns, {w.leave, 1, of.hidden}, grad_last, grad_second,
                                       second);
            product<Real, Then::where>(of.hidden, of.hidden, columns, {w.middle, 1, of.hidden}, grad_second, grad_first,
                                       first);
            product<Real>(inputs, of.hidden, columns, {w.enter, 1, inputs}, grad_first, grad_taps);
            add_dots(of.hidden, inputs, columns, grad_first, taps, own[0]);
            add_sums(of.hidden, columns, grad_first, own[1]);
            add_dots(of.hidden, of.hidden, columns, grad_second, first, own[2]);
            add_sums(of.hidden, columns, grad_second, own[3]);
            add_dots(outputs, of.hidden, columns, grad_last, second, own[4]);
            for (long o = 0; o < of.outputs; o++)  // the tap in the middle moves no pixel
                add_sums(1, columns, grad_last + (o * of.leave().channel + 4 * of.leave().tap) * columns, own[5] + o);
            Real *out = grad_x + start * of.channels * of.pixels();
            std::fill_n(out, count * of.channels * of.pixels(), Real(0));
            fold(of, count, of.channels, of.enter(), 1, grad_taps, columns, out);
        }
    }
    for (long i = 0, at = 0; i < 6; at += counts[i++]) {
        std::fill_n(grad_w[i], counts[i], Real(0));
        for (const auto &own : found)
            for (long n = 0; n < counts[i]; n++) grad_w[i][n] += own[at + n];
    }
}

// Added to found[tap, output, channel], of one image with channels last and `wide` of them. For taps to the left or
// right, the gradient of pixels without such a neighbour is set to zero, so that rows run on. `kept` takes some rows.
template <typename Real>
void add_weight_gradient(const Sizes &of, long rows, long wide, const Real *image, const Real *grad_y, Real *kept,
                         Real *found) {
    for (long top = 0; top < of.height; top += rows) {
        const long start = top * of.width, end = std::min(of.height, top + rows) * of.width;
        const Real *all = grad_y + start * of.outputs;
        for (long right = -1; right <= 1; right++) {
            if (right != 0) {
                std::copy_n(all, (end - start) * of.outputs, kept);
                for (long p = right < 0 ? 0 : of.width - 1; p < end - start; p += of.width)
                    std::fill_n(kept + p * of.outputs, of.outputs, Real(0));
            }
            for (long down = -1; down <= 1; down++) {
                const Shift move(of, down, right);
                const long first = std::max(start, move.first), last = std::min(end, move.last);
                if (first >= last) continue;
                const Real *grad = (right != 0 ? kept : all) + (first - start) * of.outputs;
                product<Real, Then::add>(of.outputs, last - first, wide, {grad, 1, of.outputs},
                                         image + (first + move.by) * wide,
                                         found + (3 * down + right + 4) * of.outputs * wide);
            }
        }
    }
}

// Of a 3x3 convolution from `channels` to `outputs`, all with channels last: grad_w is [output, tap, channel].
template <typename Real>
void weight_gradient(const Sizes &of, int threads, const Real *x, const Real *grad_y, Real *grad_w) {
    const long wide = (of.channels + Simd<Real>::size - 1) / Simd<Real>::size * Simd<Real>::size;  // whole vectors
    const long rows = std::min(of.height, std::max(1L, kPixels / of.width)), matrix = of.outputs * wide;
    const std::vector<long> starts = shares(of.images, threads);
    std::vector<std::vector<Real>> found(starts.size() - 1);
#pragma omp parallel for schedule(dynamic) num_threads(threads)
    for (size_t share = 0; share < found.size(); share++) {
        auto &own = found[share];
        own.resize(9 * matrix);
        Real *kept = scratch<Real>(rows * of.width * of.outputs + of.pixels() * wide);
        Real *padded = kept + rows * of.width * of.outputs;
        for (long n = starts[share]; n < starts[share + 1]; n++) {
            const Real *image = x + n * of.pixels() * of.channels;
            if (wide != of.channels) {
                for (long p = 0; p < of.pixels(); p++, image += of.channels)
                    std::fill(std::copy_n(image, of.channels, padded + p * wide), padded + (p + 1) * wide, Real(0));
                image = padded;
            }
            add_weight_gradient(of, rows, wide, image, grad_y + n * of.pixels() * of.outputs, kept, own.data());
        }
    }
    for (long o = 0; o < of.outputs; o++)
        for (long tap = 0; tap < 9; tap++)
            for (long c = 0; c < of.channels; c++, grad_w++) {
                *grad_w = 0;
                for (const auto &own : found) *grad_w += own[tap * matrix + o * wide + c];
            }
}

template <typename Real> Layers<const Real> layers(const Real *const *at) {
    return {at[0], at[1], at[2], at[3], at[4], at[5]};
}

}  // namespace

// Dense: y, grad_y, grad_x [N, channels, H, W], biases, and weights with channels last. The planes of x are dense, at
// strides `image` and `channel`. Weights and their gradients are in the order of `Layers`. Into `kept`, if not null,
// comes the second hidden layer [N, hidden, H, W], for backward.
#define ENTRY_POINTS(Real, name)                                                                                       \
    extern "C" void forward_##name(const Sizes *of, int threads, const Real *x, long image, long channel,              \
                                   const Real *const *weights, Real *y, Real *kept) {                                  \
        forward<Real>(*of, threads, {x, image, channel}, layers(weights), y, kept);                                    \
    }                                                                                                                  \
    extern "C" void backward_##name(const Sizes *of, int threads, const Real *x, long image, long channel,             \
                                    const Real *const *weights, const Real *kept, const Real *grad_y, Real *grad_x,    \
                                    Real *const *grad_weights) {                                                       \
        backward<Real>(*of, threads, {x, image, channel}, kept, layers(weights), grad_y, grad_x, grad_weights);        \
    }                                                                                                                  \
    extern "C" void weight_gradient_##name(const Sizes *of, int threads, const Real *x, const Real *grad_y,            \
                                           Real *grad_w) {                                                             \
        weight_gradient<Real>(*of, threads, x, grad_y, grad_w);                                                        \
    }

ENTRY_POINTS(float, float32)
ENTRY_POINTS(double, float64)
