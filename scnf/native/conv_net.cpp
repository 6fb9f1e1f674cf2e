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

constexpr long kPixels = 64;  // of three vectors each: they stay in the first-level cache

// Where the row of a channel and a tap of the 3x3 window stands in a matrix.
struct Order {
    long channel, tap;
};

// The images are taken in so many blocks, in which rows are `stride` apart: whole vectors, and at least the pixels of
// the largest block.
struct Sizes {
    long images, channels, hidden, outputs, height, width, blocks, stride;

    long pixels() const { return height * width; }
    long start(long b) const { return b * images / blocks; }

    // As the weights with channels last have them: [hidden, tap, channel] and [output, tap, hidden].
    Order enter() const { return {1, channels}; }
    Order leave() const { return {9, 1}; }
};

// The pixels p of an image, from `first` up to `last` in row-major order, for which p + `by` is one; where `edge` is
// not negative, without this column, whose neighbour would be at the other end of another row.
struct Shift {
    long by, first, last, edge;
    Shift(const Sizes &of, long down, long right)
        : by(down * of.width + right), first(std::min(of.pixels(), std::max(0L, -by))),
          last(std::max(0L, of.pixels() - std::max(0L, by))), edge(right == 0 ? -1 : right < 0 ? 0 : of.width - 1) {}
    Shift(const Sizes &of, int tap) : Shift(of, tap / 3 - 1, tap % 3 - 1) {}
};

// For each tap and the columns of a block, all bits where the pixel that the tap sees is one of the same image.
template <typename Real> class Window {
    using Bits = std::conditional_t<std::is_same_v<Real, float>, std::int32_t, std::int64_t>;
    typedef Bits Mask __attribute__((vector_size(kBytes), aligned(sizeof(Real)), may_alias));
    long stride;
    std::vector<Bits> bits;

  public:
    long by[9], margin;  // how far away each tap sees, and how far any, in whole vectors
    Window(const Sizes &of) : stride(of.stride), bits(9 * stride), margin(whole_vectors<Real>(of.width + 1)) {
        for (int tap = 0; tap < 9; tap++) {
            const Shift shift(of, tap);
            by[tap] = shift.by;
            Bits *own = bits.data() + tap * stride;
            std::fill(own + shift.first, own + std::max(shift.first, shift.last), Bits(-1));
            for (long p = shift.edge; p >= 0 && p < of.pixels(); p += of.width) own[p] = 0;
            for (long n = of.pixels(); n < stride; n++) own[n] = own[n - of.pixels()];
        }
    }
    // `values` from column n on where the tap sees a pixel, else zero, also for what is not a number.
    Vector<Real> seen(int tap, long n, Vector<Real> values) const {
        return (Vector<Real>)((Mask)values & *reinterpret_cast<const Mask *>(bits.data() + tap * stride + n));
    }
};

// Channels of images, whose planes are dense.
template <typename Real> struct Planes {
    Real *at;
    long channels, image, channel;
    Planes from(long start) const { return {at + start * image, channels, image, channel}; }
};

template <typename Real> Planes<Real> dense(const Sizes &of, long channels, Real *at) {
    return {at, channels, channels * of.pixels(), of.pixels()};
}

// As std::copy_n, which is slower for the few numbers of an image.
template <typename Real> void copy(const Real *from, long count, Real *to) {
    if (count < Simd<Real>::size) {
        std::copy_n(from, count, to);
        return;
    }
    const long last = count - Simd<Real>::size;
    for (long n = 0; n < last; n += Simd<Real>::size) store(to + n, load(from + n));
    store(to + last, load(from + last));
}

// Between planes and rows, in which `count` images stand side by side, with zeros behind them.
template <typename Real>
void to_row(const Sizes &of, long count, Planes<const Real> images, long channel, long stride, Real *row) {
    const Real *plane = images.at + channel * images.channel;
    for (long n = 0; n < count; n++) copy(plane + n * images.image, of.pixels(), row + n * of.pixels());
    std::fill(row + count * of.pixels(), row + stride, Real(0));
}

template <typename Real>
void from_row(const Sizes &of, long count, const Real *row, Planes<Real> images, long channel) {
    Real *plane = images.at + channel * images.channel;
    for (long n = 0; n < count; n++) copy(row + n * of.pixels(), of.pixels(), plane + n * images.image);
}

template <typename Real> void to_rows(const Sizes &of, long count, Planes<const Real> images, Rows<Real> matrix) {
    for (long c = 0; c < images.channels; c++) to_row(of, count, images, c, matrix.stride, matrix[c]);
}

template <typename Real> void from_rows(const Sizes &of, long count, Rows<const Real> matrix, Planes<Real> images) {
    for (long c = 0; c < images.channels; c++) from_row(of, count, matrix[c], images, c);
}

// matrix[channel and tap][image and pixel] = pixel of the image, moved by the tap, or against it. `row` has room for a
// row with a margin on both sides.
template <typename Real>
void unfold(const Sizes &of, const Window<Real> &window, long count, Order order, bool against,
            Planes<const Real> images, Rows<Real> matrix, Real *row) {
    std::fill_n(row, window.margin, Real(0));
    row += window.margin;
    for (long c = 0; c < images.channels; c++) {
        to_row(of, count, images, c, matrix.stride + window.margin, row);
        for (int tap = 0; tap < 9; tap++) {
            Real *moved = matrix[c * order.channel + (against ? 8 - tap : tap) * order.tap];
            for (long n = 0; n < matrix.stride; n += Simd<Real>::size)
                store(moved + n, window.seen(tap, n, load(row + n + window.by[tap])));
        }
    }
}

// The transpose of `unfold`, and a bias for each channel, or none. What stands in a margin around the matrix is read,
// and does not matter; `row` has room for a row.
template <typename Real>
void fold(const Sizes &of, const Window<Real> &window, long count, Order order, bool against, Rows<const Real> matrix,
          const Real *bias, Planes<Real> images, Real *row) {
    for (long c = 0; c < images.channels; c++) {
        const Real *moved[9];
        for (int tap = 0; tap < 9; tap++)
            moved[tap] = matrix[c * order.channel + (against ? tap : 8 - tap) * order.tap] + window.by[tap];
        for (long n = 0; n < matrix.stride; n += Simd<Real>::size) {
            Vector<Real> total = Vector<Real>{} + (bias ? bias[c] : Real(0));
#pragma GCC unroll 9
            for (int tap = 0; tap < 9; tap++) total += window.seen(tap, n, load(moved[tap] + n));
            store(row + n, total);
        }
        from_row(of, count, row, images, c);
    }
}

template <typename Real> struct Layers {
    Real *enter, *enter_bias, *middle, *middle_bias, *leave, *leave_bias;
};

// Of some images: taps of x, and the first hidden layer.
template <typename Real>
void first_layer(const Sizes &of, const Window<Real> &window, long count, Planes<const Real> x,
                 const Layers<const Real> &w, Rows<Real> taps, Rows<Real> first, Real *row) {
    const long inputs = 9 * of.channels, columns = whole_vectors<Real>(count * of.pixels());
    unfold(of, window, count, of.enter(), false, x, taps, row);
    product<Real, Then::relu>(of.hidden, inputs, columns, {w.enter, inputs, 1}, taps, first, {w.enter_bias, 1});
}

template <typename Real>
void forward(const Sizes &of, int threads, Planes<const Real> x, Layers<const Real> w, Real *y, Real *kept) {
    const long inputs = 9 * of.channels, outputs = 9 * of.outputs, layer = of.hidden * of.stride;
    const bool streamed = kept && of.blocks * layer >= kStreamed;
    const Window<Real> window(of);
#pragma omp parallel for schedule(dynamic) num_threads(threads)
    for (long b = 0; b < of.blocks; b++) {
        const long start = of.start(b), count = of.start(b + 1) - start;
        const long columns = whole_vectors<Real>(count * of.pixels());
        Room<Real> room((inputs + 2 * of.hidden + outputs + 1) * of.stride + 2 * window.margin, of.stride);
        const Rows<Real> taps = room.rows(inputs), first = room.rows(of.hidden), own = room.rows(of.hidden);
        const Rows<Real> second = kept && !streamed ? Rows<Real>{kept + b * layer, of.stride} : own;
        const Rows<Real> last = room.rows(outputs);
        Real *row = room.rows(1).at;
        first_layer(of, window, count, x.from(start), w, taps, first, row);
        const Matrix<Real> middle{w.middle, of.hidden, 1};
        if (streamed) {
            const Rows<Real> far{kept + b * layer, of.stride};
            product<Real, Then::relu_and_stream>(of.hidden, of.hidden, columns, middle, first, second,
                                                 {w.middle_bias, 1}, far);
            _mm_sfence();
        } else
            product<Real, Then::relu>(of.hidden, of.hidden, columns, middle, first, second, {w.middle_bias, 1});
        product<Real>(outputs, of.hidden, columns, {w.leave, of.hidden, 1}, second, last);
        fold<Real>(of, window, count, of.leave(), true, last, w.leave_bias, dense(of, of.outputs, y).from(start), row);
    }
}

template <typename Real>
void backward(const Sizes &of, int threads, Planes<const Real> x, const Real *kept, Layers<const Real> w,
              const Real *grad_y, Real *grad_x, Real *const *grad_w) {
    const long inputs = 9 * of.channels, outputs = 9 * of.outputs;
    const long counts[] = {of.hidden * inputs, of.hidden, of.hidden * of.hidden, of.hidden, outputs * of.hidden,
                           of.outputs};
    const long all = std::accumulate(counts, counts + 6, 0L);
    std::vector<Real> found(all);
    const Window<Real> window(of);
    add_shares(of.blocks, threads, all, found.data(), [&](long b, Real *sums) {
        Real *own[6] = {sums};
        for (int i = 1; i < 6; i++) own[i] = own[i - 1] + counts[i - 1];
        const long start = of.start(b), count = of.start(b + 1) - start;
        const long columns = whole_vectors<Real>(count * of.pixels());
        Room<Real> room((2 * inputs + 3 * of.hidden + outputs + 1) * of.stride + 2 * window.margin, of.stride);
        const Rows<Real> taps = room.rows(inputs), grad_taps = room.rows(inputs);
        const Rows<Real> first = room.rows(of.hidden), grad_first = room.rows(of.hidden);
        const Rows<Real> grad_second = room.rows(of.hidden), grad_last = room.rows(outputs);
        Real *row = room.rows(1).at;
        const Rows<const Real> second{kept + b * of.hidden * of.stride, of.stride};
        first_layer(of, window, count, x.from(start), w, taps, first, row);
        unfold<Real>(of, window, count, of.leave(), true, dense(of, of.outputs, grad_y).from(start), grad_last, row);
        product<Real, Then::where>(of.hidden, outputs, columns, {w.leave, 1, of.hidden}, grad_last, grad_second,
                                   second);
        product<Real, Then::where>(of.hidden, of.hidden, columns, {w.middle, 1, of.hidden}, grad_second, grad_first,
                                   first);
        product<Real>(inputs, of.hidden, columns, {w.enter, 1, inputs}, grad_first, grad_taps);
        add_dots<Real>(of.hidden, inputs, columns, grad_first, taps, own[0]);
        add_sums<Real>(of.hidden, columns, grad_first, own[1]);
        add_dots<Real>(of.hidden, of.hidden, columns, grad_second, first, own[2]);
        add_sums<Real>(of.hidden, columns, grad_second, own[3]);
        add_dots<Real>(outputs, of.hidden, columns, grad_last, second, own[4]);
        for (long o = 0; o < of.outputs; o++)  // the tap in the middle moves no pixel
            add_sums<Real>(1, columns, grad_last.from(o * of.leave().channel + 4 * of.leave().tap, 0), own[5] + o);
        fold<Real>(of, window, count, of.enter(), false, grad_taps, nullptr, dense(of, of.channels, grad_x).from(start),
                   row);
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
                                         {image + (first + move.by) * wide, wide},
                                         {found + (3 * down + right + 4) * of.outputs * wide, wide});
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
#pragma omp parallel for schedule(dynamic) num_threads(threads)
    for (long b = 0; b < of.blocks; b++) {
        const long start = of.start(b), count = of.start(b + 1) - start;
        Room<Real> room((of.channels + of.outputs) * of.stride, of.stride);
        const Rows<Real> in = room.rows(of.channels), out = room.rows(of.outputs);
        to_rows(of, count, dense(of, of.channels, x).from(start), in);
        product<Real>(of.outputs, of.channels, whole_vectors<Real>(count * of.pixels()), {weight, of.channels, 1}, in,
                      out);
        from_rows<Real>(of, count, out, dense(of, of.outputs, y).from(start));
    }
}

template <typename Real>
void mix_backward(const Sizes &of, int threads, const Real *x, const Real *weight, const Real *grad_y, Real *grad_x,
                  Real *grad_weight) {
    add_shares(of.blocks, threads, of.outputs * of.channels, grad_weight, [&](long b, Real *sums) {
        const long start = of.start(b), count = of.start(b + 1) - start;
        const long columns = whole_vectors<Real>(count * of.pixels());
        Room<Real> room((2 * of.channels + of.outputs) * of.stride, of.stride);
        const Rows<Real> in = room.rows(of.channels), grad_in = room.rows(of.channels);
        const Rows<Real> grad_out = room.rows(of.outputs);
        to_rows(of, count, dense(of, of.channels, x).from(start), in);
        to_rows(of, count, dense(of, of.outputs, grad_y).from(start), grad_out);
        product<Real>(of.channels, of.outputs, columns, {weight, 1, of.channels}, grad_out, grad_in);
        add_dots<Real>(of.outputs, of.channels, columns, grad_out, in, sums);
        from_rows<Real>(of, count, grad_in, dense(of, of.channels, grad_x).from(start));
    });
}

template <typename Real> Layers<const Real> layers(const Real *const *at) {
    return {at[0], at[1], at[2], at[3], at[4], at[5]};
}

}  // namespace

// Dense: y, grad_y, grad_x [N, channels, H, W], biases, and weights with channels last. The planes of x are dense, at
// strides `image` and `channel`. Weights and their gradients are in the order of `Layers`. Into `kept`, if not null,
// comes the second hidden layer of each block [blocks, hidden, stride], for backward. For `mix` x is dense
// as well, the weight [outputs, channels].
#define ENTRY_POINTS(Real, name)                                                                                       \
    extern "C" long vector_##name() { return Simd<Real>::size; }                                                       \
    extern "C" void forward_##name(const Sizes *of, int threads, const Real *x, long image, long channel,              \
                                   const Real *const *weights, Real *y, Real *kept) {                                  \
        forward<Real>(*of, threads, {x, of->channels, image, channel}, layers(weights), y, kept);                      \
    }                                                                                                                  \
    extern "C" void backward_##name(const Sizes *of, int threads, const Real *x, long image, long channel,             \
                                    const Real *const *weights, const Real *kept, const Real *grad_y, Real *grad_x,    \
                                    Real *const *grad_weights) {                                                       \
        const Planes<const Real> planes{x, of->channels, image, channel};                                              \
        backward<Real>(*of, threads, planes, kept, layers(weights), grad_y, grad_x, grad_weights);                     \
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
