// A network on vectors, linear -> residual blocks [ReLU, linear, ReLU, linear] -> ReLU -> linear, and its gradients.
//
// A block of vectors goes through all layers while what lies between stays in the cache of a core; what the ReLUs give
// is kept for backward. Each array of a block is a matrix with a row for each vector and a column for each feature, and
// where a layer takes it one of ones behind them, whose weights are the biases; rows are padded to whole vectors of the
// processor.

#include "matrices.h"

namespace {

constexpr long kMost = 128, kLeast = 16;  // vectors in a block

struct Sizes {
    long vectors, inputs, hidden, residuals, outputs;

    // As many for each thread, unless they would be small, of nearly as many vectors; where block b starts.
    long blocks(long threads) const {
        const long rounds = (vectors + kMost * threads - 1) / (kMost * threads);
        return std::min(rounds * threads, (vectors + kLeast - 1) / kLeast);
    }
    long start(long b, long blocks) const { return b * vectors / blocks; }
    long layers() const { return 2 * residuals + 2; }  // linear ones: all but the first come behind a ReLU
    long into(long layer) const { return layer == 0 ? inputs : hidden; }
    long out_of(long layer) const { return layer == layers() - 1 ? outputs : hidden; }
    long weights_before(long layer) const {
        const long between = std::max(0L, layer - 1) * hidden * (hidden + 1);
        return (layer > 0 ? hidden * (inputs + 1) : 0) + between;
    }
};

// How far rows with so many features, and the one, are apart.
template <typename Real> long stride(long features) { return apart<Real>(features + 1); }

// The weights of each layer as a padded matrix: with the biases [inputs + 1, outputs], or without [outputs, inputs].
template <typename Real> struct Packed {
    std::vector<std::vector<Real>> layers;
    Packed(const Sizes &of, int threads, const Real *weights, bool transposed) : layers(of.layers()) {
#pragma omp parallel for schedule(dynamic) num_threads(threads)
        for (long l = 0; l < of.layers(); l++) {
            const long inputs = of.into(l), outputs = of.out_of(l), row = stride<Real>(transposed ? outputs : inputs);
            const Real *weight = weights + of.weights_before(l), *bias = weight + outputs * inputs;
            layers[l].resize((transposed ? inputs + 1 : outputs) * row);
            Real *to = layers[l].data();
            if (transposed) {
                for (long o = 0; o < outputs; o++)
                    for (long i = 0; i < inputs; i++) to[i * row + o] = weight[o * inputs + i];
                std::copy_n(bias, outputs, to + inputs * row);
            } else
                for (long o = 0; o < outputs; o++) std::copy_n(weight + o * inputs, inputs, to + o * row);
        }
    }
    const Real *operator[](long layer) const { return layers[layer].data(); }
};

template <typename Real> void to_rows(long count, long features, const Real *vectors, Real *rows) {
    for (long n = 0; n < count; n++, vectors += features, rows += stride<Real>(features))
        *std::copy_n(vectors, features, rows) = 1;
}

template <typename Real> void from_rows(long count, long features, const Real *rows, Real *vectors) {
    for (long n = 0; n < count; n++, rows += stride<Real>(features)) vectors = std::copy_n(rows, features, vectors);
}

template <typename Real> void relu(long count, long features, const Real *sums, Real *result) {
    for (long n = 0; n < count; n++, sums += stride<Real>(features), result += stride<Real>(features)) {
        for (long f = 0; f < features; f += Simd<Real>::size) store(result + f, rectified<Real>(load(sums + f)));
        result[features] = 1;
    }
}

// Rows of [from] features times a packed matrix, into rows of `to` features; a bias takes one feature more.
template <typename Real, Then then = Then::nothing>
void multiply(long count, long from, long bias, long to, const Real *rows, const Real *packed, Real *result,
              const Real *with = nullptr) {
    product<Real, then>(count, from + bias, whole_vectors<Real>(to), {rows, stride<Real>(from), 1},
                        {packed, stride<Real>(to)}, {result, stride<Real>(to)}, {with, stride<Real>(to)});
}

template <typename Real>
void forward(const Sizes &of, int threads, const Real *x, const Real *weights, Real *y, Real *kept) {
    const long hidden = of.hidden, row = stride<Real>(hidden), last = of.layers() - 1, blocks = of.blocks(threads);
    const long in_size = kMost * stride<Real>(of.inputs), out_size = kMost * stride<Real>(of.outputs);
    const bool streamed = kept && last * of.vectors * row >= kStreamed, in_place = kept && !streamed;
    const long to_next = (in_place ? of.vectors : kMost) * row;  // hidden layer
    const Packed<Real> packed(of, threads, weights, true);
#pragma omp parallel for schedule(dynamic) num_threads(threads)
    for (long b = 0; b < blocks; b++) {
        const long start = of.start(b, blocks), count = of.start(b + 1, blocks) - start;
        Real *in = scratch<Real>(in_size + out_size + (1 + (in_place ? 0 : last)) * kMost * row);
        Real *out = in + in_size, *sums = out + out_size, *layer = in_place ? kept + start * row : sums + kMost * row;
        to_rows(count, of.inputs, x + start * of.inputs, in);
        multiply(count, of.inputs, 1, hidden, in, packed[0], sums);
        relu(count, hidden, sums, layer);
        for (long l = 1; l < last; l += 2, layer += 2 * to_next) {
            Real *inner = layer + to_next;
            multiply(count, hidden, 1, hidden, layer, packed[l], inner);
            relu(count, hidden, inner, inner);
            multiply<Real, Then::add>(count, hidden, 1, hidden, inner, packed[l + 1], sums);
            relu(count, hidden, sums, inner + to_next);
        }
        multiply(count, hidden, 1, of.outputs, layer, packed[last], out);
        if (streamed) {
            for (long l = 0; l < last; l++)
                stream(sums + kMost * row + l * to_next, count * row, kept + (l * of.vectors + start) * row);
            _mm_sfence();
        }
        from_rows(count, of.outputs, out, y + start * of.outputs);
    }
}

template <typename Real>
void backward(const Sizes &of, int threads, const Real *x, const Real *weights, const Real *kept, const Real *grad_y,
              Real *grad_x, Real *grad_weights) {
    const long hidden = of.hidden, row = stride<Real>(hidden), last = of.layers() - 1, blocks = of.blocks(threads);
    const long in_size = kMost * stride<Real>(of.inputs), out_size = kMost * stride<Real>(of.outputs);
    const Packed<Real> packed(of, threads, weights, false);
    std::vector<long> places{0};  // of the gradient of each layer: [outputs, inputs + 1], in padded rows
    for (long l = 0; l <= last; l++) places.push_back(places[l] + of.out_of(l) * stride<Real>(of.into(l)));
    std::vector<Real> found(places.back());
    add_shares(blocks, threads, places.back(), found.data(), [&](long b, Real *sums) {
        const long start = of.start(b, blocks), count = of.start(b + 1, blocks) - start;
        Real *in = scratch<Real>(2 * in_size + out_size + 2 * kMost * row), *grad_in = in + in_size;
        Real *grad_out = grad_in + in_size, *grad = grad_out + out_size, *grad_inner = grad + kMost * row;
        auto add_gradient = [&](long l, const Real *grads, const Real *inputs) {
            const long columns = whole_vectors<Real>(of.into(l) + 1), row = stride<Real>(of.into(l));
            product<Real, Then::add>(of.out_of(l), count, columns, {grads, 1, stride<Real>(of.out_of(l))},
                                     {inputs, row}, {sums + places[l], row});
        };
        auto layer = [&](long l) { return kept + ((l - 1) * of.vectors + start) * row; };  // that l takes
        to_rows(count, of.outputs, grad_y + start * of.outputs, grad_out);
        add_gradient(last, grad_out, layer(last));
        multiply<Real, Then::where>(count, of.outputs, 0, hidden, grad_out, packed[last], grad, layer(last));
        for (long l = last - 1; l > 0; l -= 2) {
            add_gradient(l, grad, layer(l));
            multiply<Real, Then::where>(count, hidden, 0, hidden, grad, packed[l], grad_inner, layer(l));
            add_gradient(l - 1, grad_inner, layer(l - 1));
            multiply<Real, Then::add_where>(count, hidden, 0, hidden, grad_inner, packed[l - 1], grad, layer(l - 1));
        }
        to_rows(count, of.inputs, x + start * of.inputs, in);
        add_gradient(0, grad, in);
        multiply(count, hidden, 0, of.inputs, grad, packed[0], grad_in);
        from_rows(count, of.inputs, grad_in, grad_x + start * of.inputs);
    });
    for (long l = 0; l <= last; l++) {
        const long inputs = of.into(l), outputs = of.out_of(l);
        Real *weight = grad_weights + of.weights_before(l), *bias = weight + outputs * inputs;
        const Real *padded = found.data() + places[l];
        from_rows(outputs, inputs, padded, weight);
        for (long o = 0; o < outputs; o++, padded += stride<Real>(inputs)) bias[o] = padded[inputs];
    }
}

}  // namespace

// Dense: x and grad_x [N, inputs], y and grad_y [N, outputs], weights and their gradients one after the other, and
// `kept` [layers - 1, N, mlp_row_NAME(hidden)], which may be null in forward.
#define ENTRY_POINTS(Real, name)                                                                                       \
    extern "C" long mlp_row_##name(long features) { return stride<Real>(features); }                                   \
    extern "C" void mlp_forward_##name(const Sizes *of, int threads, const Real *x, const Real *weights, Real *y,      \
                                       Real *kept) {                                                                   \
        forward<Real>(*of, threads, x, weights, y, kept);                                                              \
    }                                                                                                                  \
    extern "C" void mlp_backward_##name(const Sizes *of, int threads, const Real *x, const Real *weights,              \
                                        const Real *kept, const Real *grad_y, Real *grad_x, Real *grad_weights) {      \
        backward<Real>(*of, threads, x, weights, kept, grad_y, grad_x, grad_weights);                                  \
    }

ENTRY_POINTS(float, float32)
ENTRY_POINTS(double, float64)
