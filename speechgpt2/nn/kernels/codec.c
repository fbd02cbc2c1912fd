/* Streams of a codec: numbers are float, or bfloat16 if `half`; sums are float. */

#include "vectors.h"

INLINE __m256 load(const void *x, long i, int half) {
    if (!half) return _mm256_loadu_ps((const float *)x + i);
    __m128i bits = _mm_loadu_si128((const __m128i *)((const uint16_t *)x + i));
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
}

INLINE void store(void *y, long i, __m256 value, int half) {
    if (!half) {
        _mm256_storeu_ps((float *)y + i, value);
        return;
    }
    __m256i bits = _mm256_castps_si256(value), odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    bits = _mm256_srli_epi32(_mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff))), 16);
    __m128i packed = _mm_packus_epi32(_mm256_castsi256_si128(bits), _mm256_extracti128_si256(bits, 1));
    _mm_storeu_si128((__m128i *)((uint16_t *)y + i), packed);
}

INLINE const void *at(const void *x, long i, int half) { return (const char *)x + i * (half ? 2 : 4); }

/* Put `past` steps `tail` before the `steps` of x, times `slope` where they are negative: y [batch, past + steps, width]. */
INLINE void extend_as(const void *x, const void *tail, void *y, long batch, long steps, long past, long width,
                             float slope, int half, int threads) {
    long rows = past + steps;
    const __m256 zero = _mm256_setzero_ps(), factor = _mm256_set1_ps(slope);
#pragma omp parallel for schedule(static) num_threads(threads) if (batch * rows * width > MANY_PRODUCTS)
    for (long r = 0; r < batch * rows; r++) {
        long b = r / rows, t = r % rows - past;
        if (t < 0) {
            memcpy((char *)at(y, r * width, half), at(tail, (b * past + t + past) * width, half), width * (half ? 2 : 4));
            continue;
        }
        for (long i = 0; i < width; i += 8) {
            __m256 value = load(x, (b * steps + t) * width + i, half);
            store(y, r * width + i, _mm256_blendv_ps(value, _mm256_mul_ps(value, factor), _mm256_cmp_ps(value, zero, _CMP_LT_OQ)), half);
        }
    }
}

void extend(const void *x, const void *tail, void *y, long batch, long steps, long past, long width, long half,
            float slope, int threads) {
    if (half) extend_as(x, tail, y, batch, steps, past, width, slope, 1, threads);
    else extend_as(x, tail, y, batch, steps, past, width, slope, 0, threads);
}

/* Depthwise convolution and layer norm of x [batch, steps, width] after `tail` [batch, past, width], with `taps`
   [past + 1, width] and the biases and gains `rest` [3, width]: of the convolution, and gain and bias of the norm. */
INLINE void depthwise_norm_as(const void *x, const void *tail, const float *taps, const float *rest, void *y,
                                     long batch, long steps, long past, long width, float eps, int half, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads) if (batch * steps * past * width > MANY_PRODUCTS)
    for (long r = 0; r < batch * steps; r++) {
        long b = r / steps, t = r % steps;
        float row[width];
        __m256 total = _mm256_setzero_ps(), squares = total;
        for (long i = 0; i < width; i += 8) {
            __m256 sum = _mm256_loadu_ps(rest + i);
            for (long k = 0; k <= past; k++) {
                long step = t + k - past;
                __m256 value = step < 0 ? load(tail, (b * past + step + past) * width + i, half)
                                        : load(x, (b * steps + step) * width + i, half);
                sum = _mm256_fmadd_ps(value, _mm256_loadu_ps(taps + k * width + i), sum);
            }
            _mm256_storeu_ps(row + i, sum);
            total = _mm256_add_ps(total, sum);
        }
        __m256 mean = _mm256_set1_ps(sum_of(total) / (float)width);
        for (long i = 0; i < width; i += 8) {
            __m256 rest_of = _mm256_sub_ps(_mm256_loadu_ps(row + i), mean);
            squares = _mm256_fmadd_ps(rest_of, rest_of, squares);
        }
        __m256 scale = _mm256_set1_ps(1 / sqrtf(sum_of(squares) / (float)width + eps));
        for (long i = 0; i < width; i += 8) {
            __m256 value = _mm256_mul_ps(_mm256_sub_ps(_mm256_loadu_ps(row + i), mean), scale);
            value = _mm256_fmadd_ps(value, _mm256_loadu_ps(rest + width + i), _mm256_loadu_ps(rest + 2 * width + i));
            store(y, r * width + i, value, half);
        }
    }
}

void depthwise_norm(const void *x, const void *tail, const float *taps, const float *rest, void *y, long batch,
                    long steps, long past, long width, long half, float eps, int threads) {
    if (half) depthwise_norm_as(x, tail, taps, rest, y, batch, steps, past, width, eps, 1, threads);
    else depthwise_norm_as(x, tail, taps, rest, y, batch, steps, past, width, eps, 0, threads);
}

/* Rotate the pairs (2i, 2i + 1) of x [width], times `scale`, into y. */
INLINE void rotate_pairs(const void *x, const float *cos, const float *sin, float *y, long width, float scale,
                                int half) {
    for (long i = 0; i < width; i += 8) _mm256_storeu_ps(y + i, load(x, i, half));
    for (long i = 0; i < width; i += 2) {
        float a = y[i] * scale, b = y[i + 1] * scale;
        y[i] = a * cos[i / 2] - b * sin[i / 2];
        y[i + 1] = a * sin[i / 2] + b * cos[i / 2];
    }
}

/* Sum 8 columns of `values` [used, width] from column `i` on, by the weights of `count` queries. */
INLINE void sum_values(const float *weights, const void *values, long i, long used, long lanes, long width,
                              __m256 *sums, const int count, int half) {
    __m256 part[8];
    for (int j = 0; j < count; j++) part[j] = _mm256_setzero_ps();
    for (long c = 0; c < used; c++) {
        __m256 value = load(values, c * width + i, half);
        for (int j = 0; j < count; j++)
            part[j] = _mm256_fmadd_ps(value, _mm256_set1_ps(weights[c * lanes + j]), part[j]);
    }
    for (int j = 0; j < count; j++) sums[j] = part[j];
}

/* One head of a row: `queries` [steps, width] attend to the cells of the ring, into y, whose steps are `stride` apart.
   Weights are computed for all queries of a cell at once, which are lanes: `lanes` is the number of steps, rounded up. */
INLINE void attend_head(const float *queries, const void *keys, const void *values, void *y, long position,
                               long steps, long lanes, long cells, long context, long width, long stride, int half) {
    long last = position + steps - 1, used = last + 1 < cells ? last + 1 : cells;
    float weights[used][lanes], most[lanes], total[lanes];
    const __m256 none = _mm256_set1_ps(-INFINITY);
    const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    for (long t = 0; t < lanes; t++) most[t] = -INFINITY, total[t] = 0;
    memset(weights, 0, sizeof weights);
    for (long c = 0, newest = last % cells; c < used; c++) {
        for (long t = 0; t < steps; t += 4) {
            __m256 sums[4];
            for (int j = 0; j < 4; j++) sums[j] = _mm256_setzero_ps();
            for (long i = 0; i < width; i += 8) {
                __m256 key = load(keys, c * width + i, half);
                for (int j = 0; j < 4; j++)
                    sums[j] = _mm256_fmadd_ps(key, _mm256_loadu_ps(queries + (t + j) * width + i), sums[j]);
            }
            __m256 four = _mm256_hadd_ps(_mm256_hadd_ps(sums[0], sums[1]), _mm256_hadd_ps(sums[2], sums[3]));
            _mm_storeu_ps(weights[c] + t, _mm_add_ps(_mm256_castps256_ps128(four), _mm256_extractf128_ps(four, 1)));
        }
        /* The cell's step, counted from the chunk's first: a query sees it and `context` - 1 steps before it. */
        long step = steps - 1 - (c <= newest ? newest - c : newest - c + cells);
        for (long t = 0; t < lanes; t += 8) {
            __m256i query = _mm256_add_epi32(lane, _mm256_set1_epi32((int)t));
            __m256i future = _mm256_cmpgt_epi32(_mm256_set1_epi32((int)step), query);
            __m256i seen = _mm256_cmpgt_epi32(_mm256_set1_epi32((int)(step + context)), query);
            __m256 hidden = _mm256_castsi256_ps(_mm256_or_si256(future, _mm256_xor_si256(seen, _mm256_set1_epi32(-1))));
            __m256 score = _mm256_blendv_ps(_mm256_loadu_ps(weights[c] + t), none, hidden);
            _mm256_storeu_ps(weights[c] + t, score);
            _mm256_storeu_ps(most + t, _mm256_max_ps(score, _mm256_loadu_ps(most + t)));
        }
    }
    for (long c = 0; c < used; c++)
        for (long t = 0; t < lanes; t += 8) {
            __m256 score = _mm256_loadu_ps(weights[c] + t);
            __m256 weight = exponential(_mm256_sub_ps(score, _mm256_loadu_ps(most + t)));
            weight = _mm256_and_ps(weight, _mm256_cmp_ps(score, none, _CMP_GT_OQ));
            _mm256_storeu_ps(weights[c] + t, weight);
            _mm256_storeu_ps(total + t, _mm256_add_ps(weight, _mm256_loadu_ps(total + t)));
        }
    for (long t = 0; t < steps; t += 8) {
        long count = steps - t < 8 ? steps - t : 8;
        for (long i = 0; i < width; i += 8) {
            __m256 sums[8];
            if (count > 4) sum_values(weights[0] + t, values, i, used, lanes, width, sums, 8, half);
            else sum_values(weights[0] + t, values, i, used, lanes, width, sums, 4, half);
            for (int j = 0; j < count; j++)
                store(y, (t + j) * stride + i, _mm256_div_ps(sums[j], _mm256_set1_ps(total[t + j])), half);
        }
    }
}

INLINE void attend_ring_as(const void *heads, const float *cos, const float *sin, void *keys, void *values,
                                  void *y, const int64_t *positions, long batch, long steps, long count, long cells,
                                  long context, long width, int half, int threads) {
    long lanes = (steps + 7) / 8 * 8, stride = count * width;
#pragma omp parallel for schedule(static) num_threads(threads)
    for (long n = 0; n < batch * count; n++) {
        long b = n / count, h = n % count, ring = n * cells * width;
        float queries[lanes][width], key[width];
        memset(queries, 0, sizeof queries);
        for (long t = 0; t < steps; t++) {
            long row = b * steps + t, cell = ring + (positions[b] + t) % cells * width;
            long from = 3 * row * stride + h * width;
            const float *c = cos + row * (width / 2), *s = sin + row * (width / 2);
            rotate_pairs(at(heads, from, half), c, s, queries[t], width, 1 / sqrtf((float)width), half);
            rotate_pairs(at(heads, from + stride, half), c, s, key, width, 1, half);
            for (long i = 0; i < width; i += 8) {
                store(keys, cell + i, _mm256_loadu_ps(key + i), half);
                store(values, cell + i, load(heads, from + 2 * stride + i, half), half);
            }
        }
        attend_head(queries[0], at(keys, ring, half), at(values, ring, half),
                    (void *)at(y, b * steps * stride + h * width, half), positions[b], steps, lanes, cells, context, width,
                    stride, half);
    }
}

/* Attend with a chunk of rows: `heads` [batch, steps, 3, count, width] are its queries, keys and values before rotation.
   Keys and values are written to the rings [batch, count, cells, width], that of step p to cell p % cells; a query sees
   `context` steps. y is [batch, steps, count, width]. */
void attend_ring(const void *heads, const float *cos, const float *sin, void *keys, void *values, void *y,
                 const int64_t *positions, long batch, long steps, long count, long cells, long context, long width,
                 long half, int threads) {
    if (half)
        attend_ring_as(heads, cos, sin, keys, values, y, positions, batch, steps, count, cells, context, width, 1, threads);
    else
        attend_ring_as(heads, cos, sin, keys, values, y, positions, batch, steps, count, cells, context, width, 0, threads);
}
