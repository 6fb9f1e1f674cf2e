// A network of 3x3 -> ReLU -> 1x1 -> ReLU -> 3x3 convolutions on images, and its gradients, in one pass over memory;
// the gradient at the weights of a single 3x3 convolution; and a 1x1 convolution, with its gradients.
//
// The network takes images a few at a time, so that all that lies between input and output stays in the cache of one
// core. Of it, backward is given the second hidden layer, and computes the first again. Every array of such a block is
// a matrix with a row for each channel (or channel and tap of a 3x3 window) and a column for each pixel, padded to
// whole vectors.

#include <algorithm>
#include <numeric>
#include <vector>

#include "matrices.h"

namespace {

constexpr long kBlock = 49152;  // numbers of a hidden layer in a block: four of them, of floats, fit into a megabyte
constexpr long kColumns = 784;  // pixels of a block: beyond, the layers of few channels leave the first-level cache
constexpr long kPixels = 64;    // of three vectors each: they stay in the first-level cache

// Where the row of a channel and a tap of the 3x3 window stands in a matrix.
struct Order {
    long channel, tap;
};

struct Sizes {
    long images, channels, hidden, outputs, height, width;

    long pixels() const { return height * width; }
    long block() const {
        const long most = std::min(kColumns, kBlock / std::max({hidden, 4 * channels, 4 * outputs}));
        return std::max(1L, (most + pixels() / 2) / pixels());
    }
    // As many for each thread, of nearly as many images, and none of more than `block`; where block b starts.
    long blocks(long threads) const {
        const long together = block() * threads;
        return std::min(images, (images + together - 1) / together * threads);
    }
    long start(long b, long blocks) const { return b * images / blocks; }
    template <typename Real> Width columns(long count) const { return padded<Real>(count * pixels()); }

    // As the weights with channels last have them: [hidden, tap, channel] and [output, tap, hidden].
    Order enter() const { return {1, channels}; }
    Order leave() const { return {9, 1}; }
};

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
            long channel, Real *matrix, long stride) {
    for (long c = 0; c < channels; c++)
        for (long tap = 0; tap < 9; tap++) {
            Real *row = matrix + (c * order.channel + tap * order.tap) * stride;
            const Shift move(of, sign * (tap / 3 - 1), sign * (tap % 3 - 1));
            for (long n = 0; n < count; n++, row += of.pixels()) {
                const Real *from = images + n * image + c * channel + move.by;
                std::fill(row, row + move.first, Real(0));
                std::copy(from + move.first, from + move.last, row + move.first);
                std::fill(row + move.last, row + of.pixels(), Real(0));
                if (move.edge >= 0)
                    for (long p = move.edge; p < of.pixels(); p += of.width) row[p] = 0;
            }
            std::fill(row, row + stride - count * of.pixels(), Real(0));
        }
}

// The transpose of `unfold`, added to `images`, which are dense. It writes zeros into the matrix.
template <typename Real>
void fold(const Sizes &of, long count, long channels, Order order, long sign, Real *matrix, long stride,
          Real *images) {
    for (long c = 0; c < channels; c++)
        for (long tap = 0; tap < 9; tap++) {
            Real *row = matrix + (c * order.channel + tap * order.tap) * stride;
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
void to_images(const Sizes &of, long count, long channels, const Real *matrix, long stride, Real *images) {
    for (long n = 0; n < count; n++)
        for (long c = 0; c < channels; c++, images += of.pixels())
            std::copy_n(matrix + c * stride + n * of.pixels(), of.pixels(), images);
}

// The same past the caches, into which a store would first read what it overwrites. `staged` has room for an image.
template <typename Real>
void stream_to_images(const Sizes &of, long count, long channels, const Real *matrix, long stride, Real *images,
                      Real *staged) {
    for (long n = 0; n < count; n++, images += channels * of.pixels()) {
        to_images(of, 1, channels, matrix + n * of.pixels(), stride, staged);
        stream(staged, channels * of.pixels(), images);
    }
    _mm_sfence();
}

template <typename Real>
void from_images(const Sizes &of, long count, long channels, const Real *images, Real *matrix, long stride) {
    for (long n = 0; n < count; n++)
        for (long c = 0; c < channels; c++, images += of.pixels())
            std::copy_n(images, of.pixels(), matrix + c * stride + n * of.pixels());
    for (long c = 0; c < channels; c++)
        std::fill(matrix + c * stride + count * of.pixels(), matrix + (c + 1) * stride, Real(0));
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
void first_layer(const Sizes &of, long count, Input<Real> x, const Layers<const Real> &w, Width columns, Real *taps,
                 Real *first) {
    const long inputs = 9 * of.channels;
    unfold(of, count, of.channels, of.enter(), 1, x.at, x.image, x.channel, taps, columns.stride);
    product<Real, Then::relu>(of.hidden, inputs, columns, {w.enter, inputs, 1}, taps, first, w.enter_bias);
}

template <typename Real>
void forward(const Sizes &of, int threads, Input<Real> x, Layers<const Real> w, Real *y, Real *kept) {
    const long inputs = 9 * of.channels, outputs = 9 * of.outputs;
    const long most = of.columns<Real>(of.block()).stride, blocks = of.blocks(threads);
    const long image = of.hidden * of.pixels();  // of the second hidden layer
    const bool streamed = kept && of.images * image >= kStreamed;
#pragma omp parallel for schedule(dynamic) num_threads(threads)
    for (long b = 0; b < blocks; b++) {
        const long start = of.start(b, blocks), count = of.start(b + 1, blocks) - start;
        const Width columns = of.columns<Real>(count);
        Real *taps = scratch<Real>((inputs + 2 * of.hidden + outputs) * most);
        Real *first = taps + inputs * most, *second = first + of.hidden * most, *last = second + of.hidden * most;
        first_layer(of, count, x.from(start), w, columns, taps, first);
        product<Real, Then::relu>(of.hidden, of.hidden, columns, {w.middle, of.hidden, 1}, first, second,
                                  w.middle_bias);
        if (streamed)
            stream_to_images(of, count, of.hidden, second, columns.stride, kept + start * image, first);
        else if (kept)
            to_images(of, count, of.hidden, second, columns.stride, kept + start * image);
        product<Real>(outputs, of.hidden, columns, {w.leave, of.hidden, 1}, second, last);
        Real *out = y + start * of.outputs * of.pixels();
        for (long n = 0; n < count * of.outputs; n++)
            std::fill_n(out + n * of.pixels(), of.pixels(), w.leave_bias[n % of.outputs]);
        fold(of, count, of.outputs, of.leave(), -1, last, columns.stride, out);
    }
}

template <typename Real>
void backward(const Sizes &of, int threads, Input<Real> x, const Real *kept, Layers<const Real> w, const Real *grad_y,
              Real *grad_x, Real *const *grad_w) {
    const long inputs = 9 * of.channels, outputs = 9 * of.outputs;
    const long most = of.columns<Real>(of.block()).stride, blocks = of.blocks(threads);
    const long counts[] = {of.hidden * inputs, of.hidden, of.hidden * of.hidden, of.hidden, outputs * of.hidden,
                           of.outputs};
    const long all = std::accumulate(counts, counts + 6, 0L);
    std::vector<Real> found(all);
    add_shares(blocks, threads, all, found.data(), [&](long b, Real *sums) {
        Real *own[6] = {sums};
        for (int i = 1; i < 6; i++) own[i] = own[i - 1] + counts[i - 1];
        const long start = of.start(b, blocks), count = of.start(b + 1, blocks) - start;
        const Width columns = of.columns<Real>(count);
        Real *taps = scratch<Real>((2 * inputs + 4 * of.hidden + outputs) * most);
        Real *first = taps + inputs * most, *second = first + of.hidden * most;
        Real *grad_taps = second + of.hidden * most, *grad_first = grad_taps + inputs * most;
        Real *grad_second = grad_first + of.hidden * most, *grad_last = grad_second + of.hidden * most;
        first_layer(of, count, x.from(start), w, columns, taps, first);
        from_images(of, count, of.hidden, kept + start * of.hidden * of.pixels(), second, columns.stride);
        const Real *grad = grad_y + start * of.outputs * of.pixels();
        unfold(of, count, of.outputs, of.leave(), -1, grad, of.outputs * of.pixels(), of.pixels(), grad_last,
               columns.stride);
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
            add_sums(1, columns, grad_last + (o * of.leave().channel + 4 * of.leave().tap) * columns.stride, own[5] + o);
        Real *out = grad_x + start * of.channels * of.pixels();
        std::fill_n(out, count * of.channels * of.pixels(), Real(0));
        fold(of, count, of.channels, of.enter(), 1, grad_taps, columns.stride, out);
    });
    const Real *sums = found.data();
    for (int i = 0; i < 6; sums += counts[i++]) std::copy_n(sums, counts[i], grad_w[i]);
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
    const long wide = whole_vectors<Real>(of.channels);
    const long rows = std::min(of.height, std::max(1L, kPixels / of.width)), matrix = of.outputs * wide;
    std::vector<Real> found(9 * matrix);
    add_shares(of.images, threads, 9 * matrix, found.data(), [&](long n, Real *sums) {
        Real *kept = scratch<Real>(rows * of.width * of.outputs + of.pixels() * wide);
        Real *padded = kept + rows * of.width * of.outputs;
        const Real *image = x + n * of.pixels() * of.channels;
        if (wide != of.channels) {
            for (long p = 0; p < of.pixels(); p++, image += of.channels)
                std::fill(std::copy_n(image, of.channels, padded + p * wide), padded + (p + 1) * wide, Real(0));
            image = padded;
        }
        add_weight_gradient(of, rows, wide, image, grad_y + n * of.pixels() * of.outputs, kept, sums);
    });
    for (long o = 0; o < of.outputs; o++)
        for (long tap = 0; tap < 9; tap++, grad_w += of.channels)
            std::copy_n(found.data() + tap * matrix + o * wide, of.channels, grad_w);
}

// A 1x1 convolution without bias.
template <typename Real>
void mix(const Sizes &of, int threads, const Real *x, const Real *weight, Real *y) {
    const long most = of.columns<Real>(of.block()).stride, blocks = of.blocks(threads);
#pragma omp parallel for schedule(dynamic) num_threads(threads)
    for (long b = 0; b < blocks; b++) {
        const long start = of.start(b, blocks), count = of.start(b + 1, blocks) - start;
        const Width columns = of.columns<Real>(count);
        Real *in = scratch<Real>((of.channels + of.outputs) * most), *out = in + of.channels * most;
        from_images(of, count, of.channels, x + start * of.channels * of.pixels(), in, columns.stride);
        product<Real>(of.outputs, of.channels, columns, {weight, of.channels, 1}, in, out);
        to_images(of, count, of.outputs, out, columns.stride, y + start * of.outputs * of.pixels());
    }
}

template <typename Real>
void mix_backward(const Sizes &of, int threads, const Real *x, const Real *weight, const Real *grad_y, Real *grad_x,
                  Real *grad_weight) {
    const long most = of.columns<Real>(of.block()).stride, blocks = of.blocks(threads);
    add_shares(blocks, threads, of.outputs * of.channels, grad_weight, [&](long b, Real *sums) {
        const long start = of.start(b, blocks), count = of.start(b + 1, blocks) - start;
        const Width columns = of.columns<Real>(count);
        Real *in = scratch<Real>((2 * of.channels + of.outputs) * most), *grad_in = in + of.channels * most;
        Real *grad_out = grad_in + of.channels * most;
        from_images(of, count, of.channels, x + start * of.channels * of.pixels(), in, columns.stride);
        from_images(of, count, of.outputs, grad_y + start * of.outputs * of.pixels(), grad_out, columns.stride);
        product<Real>(of.channels, of.outputs, columns, {weight, 1, of.channels}, grad_out, grad_in);
        add_dots(of.outputs, of.channels, columns, grad_out, in, sums);
        to_images(of, count, of.channels, grad_in, columns.stride, grad_x + start * of.channels * of.pixels());
    });
}

template <typename Real> Layers<const Real> layers(const Real *const *at) {
    return {at[0], at[1], at[2], at[3], at[4], at[5]};
}

}  // namespace

// Dense: y, grad_y, grad_x [N, channels, H, W], biases, and weights with channels last. The planes of x are dense, at
// strides `image` and `channel`. Weights and their gradients are in the order of `Layers`. Into `kept`, if not null,
// comes the second hidden layer [N, hidden, H, W], for backward. For `mix` x is dense as well, the weight [outputs,
// channels].
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
    }                                                                                                                  \
    extern "C" void mix_##name(const Sizes *of, int threads, const Real *x, const Real *weight, Real *y) {             \
        mix<Real>(*of, threads, x, weight, y);                                                                         \
    }                                                                                                                  \
    extern "C" void mix_backward_##name(const Sizes *of, int threads, const Real *x, const Real *weight,               \
                                        const Real *grad_y, Real *grad_x, Real *grad_weight) {                         \
        mix_backward<Real>(*of, threads, x, weight, grad_y, grad_x, grad_weight);                                      \
    }

ENTRY_POINTS(float, float32)
ENTRY_POINTS(double, float64)
