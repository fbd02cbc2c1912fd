/* A chunk of few positions through all layers of a decoder: norms, products, attention and gates, in one call. */

#include "products.h"
#include "vectors.h"

typedef struct {
    Matrix qkv, out, gate_up, down;
    const float *attention_norm, *ffn_norm; /* gains [width] */
    const float *q_norm, *k_norm;           /* gains [head_width], or NULL */
} Layer;

typedef struct {
    const Layer *layers;
    const float *norm; /* gain of the last norm */
    long layer_count, width, heads, kv_heads, head_width, ffn;
    float eps;
} Decoder;

/* Positions of several rows. Those of a row follow each other. */
typedef struct {
    const long *rows, *positions; /* [count] */
    const float *cos, *sin;       /* [count, head_width]; sines have the sign of their half */
    float *const *caches;         /* keys and values of each layer: [rows, kv_heads, capacity, head_width] */
    long count, row_stride, head_stride;
} Chunk;

/* RMSNorm: y = x / sqrt(mean(x²) + eps) · gain for x, y [count, width]; y may be x. */
static void rms_norm(const float *x, const float *gain, float *y, long count, long width, float eps) {
    for (long n = 0; n < count; n++) {
        const float *row = x + n * width;
        float scale = 1 / sqrtf(dot(row, row, width) / (float)width + eps);
        for (long i = 0; i < width; i++) y[n * width + i] = row[i] * scale * gain[i];
    }
}

/* y = silu(gate) · up for x [count, 2, width] with gate and up, and y [count, width]. */
static void gated_silu(const float *x, float *y, long count, long width, int threads) {
    const __m256 one = _mm256_set1_ps(1), zero = _mm256_setzero_ps();
#pragma omp parallel for schedule(static) num_threads(threads) if (count * width > MANY_PRODUCTS)
    for (long n = 0; n < count; n++) {
        const float *gates = x + 2 * n * width, *up = gates + width;
        for (long i = 0; i < width; i += 8) {
            __m256 gate = _mm256_loadu_ps(gates + i), negative = _mm256_min_ps(gate, _mm256_sub_ps(zero, gate));
            /* With e = exp(-|x|): the sigmoid of x is 1 / (1 + e), or e / (1 + e) if x is negative. */
            __m256 e = exponential(negative), numerator = _mm256_blendv_ps(one, e, gate);
            __m256 sigmoid = _mm256_div_ps(numerator, _mm256_add_ps(one, e));
            _mm256_storeu_ps(y + n * width + i, _mm256_mul_ps(_mm256_mul_ps(gate, sigmoid), _mm256_loadu_ps(up + i)));
        }
    }
}

/* Rotate the pairs (i, i + width / 2) of x [width] into y; `sin` has the sign of the pair's half. */
static void rotate(const float *x, const float *cos, const float *sin, float *y, long width) {
    long half = width / 2;
    for (long i = 0; i < half; i++) y[i] = x[i] * cos[i] + x[i + half] * sin[i];
    for (long i = half; i < width; i++) y[i] = x[i] * cos[i] + x[i - half] * sin[i];
}

/* Attend with one query [width] over `count` keys and values [count, width] into y [width]. */
static void attend_query(const float *query, const float *keys, const float *values, float *y, long count, long width) {
    float weights[count + 7], scale = 1 / sqrtf((float)width), most = -INFINITY;
    for (long p = 0; p < count; p++) {
        weights[p] = dot(query, keys + p * width, width) * scale;
        most = weights[p] > most ? weights[p] : most;
    }
    for (long p = count; p % 8; p++) weights[p] = -INFINITY;
    __m256 total = _mm256_setzero_ps();
    for (long p = 0; p < count; p += 8) {
        __m256 weight = exponential(_mm256_sub_ps(_mm256_loadu_ps(weights + p), _mm256_set1_ps(most)));
        _mm256_storeu_ps(weights + p, weight);
        total = _mm256_add_ps(total, weight);
    }
    for (long i = 0; i < width; i += 8) {
        __m256 sum = _mm256_setzero_ps();
        for (long p = 0; p < count; p++)
            sum = _mm256_fmadd_ps(_mm256_set1_ps(weights[p]), _mm256_loadu_ps(values + p * width + i), sum);
        _mm256_storeu_ps(y + i, sum);
    }
    float share = 1 / sum_of(total);
    for (long i = 0; i < width; i++) y[i] *= share;
}

/* Write the keys and values of a chunk to a layer's cache, and attend with its queries up to their positions. `heads`
   [count, heads + 2 kv_heads, head_width] are queries, keys and values before norm and rotation. */
static void attend(const Decoder *d, const Layer *layer, const Chunk *chunk, float *keys, float *values, float *heads,
                   float *y, int threads) {
    long width = d->head_width, all = d->heads + 2 * d->kv_heads, products = 0;
    for (long n = 0; n < chunk->count; n++) {
        float *query = heads + n * all * width, *key = query + d->heads * width, *value = key + d->kv_heads * width;
        if (layer->q_norm) {
            rms_norm(query, layer->q_norm, query, d->heads, width, d->eps);
            rms_norm(key, layer->k_norm, key, d->kv_heads, width, d->eps);
        }
        for (long h = 0; h < d->kv_heads; h++) {
            long cell = chunk->rows[n] * chunk->row_stride + h * chunk->head_stride + chunk->positions[n] * width;
            rotate(key + h * width, chunk->cos + n * width, chunk->sin + n * width, keys + cell, width);
            memcpy(values + cell, value + h * width, width * sizeof(float));
        }
        products += chunk->positions[n] * d->heads * width;
    }
#pragma omp parallel for schedule(static) num_threads(threads) if (products > MANY_PRODUCTS)
    for (long i = 0; i < chunk->count * d->heads; i++) {
        long n = i / d->heads, h = i % d->heads;
        long start = chunk->rows[n] * chunk->row_stride + h / (d->heads / d->kv_heads) * chunk->head_stride;
        float query[width];
        rotate(heads + (n * all + h) * width, chunk->cos + n * width, chunk->sin + n * width, query, width);
        attend_query(query, keys + start, values + start, y + i * width, chunk->positions[n] + 1, width);
    }
}

static void add(float *x, const float *y, long count) {
    for (long i = 0; i < count; i++) x[i] += y[i];
}

static long larger(long a, long b) { return a > b ? a : b; }

/* Numbers of `scratch` that `decode` needs for each position. */
long scratch_size(const Decoder *d) {
    long heads = (d->heads + 2 * d->kv_heads) * d->head_width;
    return d->width + larger(heads, 2 * d->ffn) + larger(d->heads * d->head_width, d->ffn);
}

/* Process a chunk in place: x [count, width]. */
void decode(const Decoder *d, const Chunk *chunk, float *x, float *scratch, int threads) {
    long count = chunk->count, heads = (d->heads + 2 * d->kv_heads) * d->head_width;
    float *narrow = scratch, *large = narrow + count * d->width, *middle = large + count * larger(heads, 2 * d->ffn);
    for (long i = 0; i < d->layer_count; i++) {
        const Layer *layer = d->layers + i;
        rms_norm(x, layer->attention_norm, narrow, count, d->width, d->eps);
        multiply(&layer->qkv, narrow, large, count, 0, threads);
        attend(d, layer, chunk, chunk->caches[2 * i], chunk->caches[2 * i + 1], large, middle, threads);
        multiply(&layer->out, middle, narrow, count, 0, threads);
        add(x, narrow, count * d->width);
        rms_norm(x, layer->ffn_norm, narrow, count, d->width, d->eps);
        multiply(&layer->gate_up, narrow, large, count, 0, threads);
        gated_silu(large, middle, count, d->ffn, threads);
        multiply(&layer->down, middle, narrow, count, 0, threads);
        add(x, narrow, count * d->width);
    }
    rms_norm(x, d->norm, x, count, d->width, d->eps);
}
