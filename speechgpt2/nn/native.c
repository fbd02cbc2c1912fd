/* The kernels of a step of few rows on a CPU: products with quantized matrices, y = x Wᵀ, and what is between products.

At best a product takes as long as reading the matrix. Weights stay integers until their products are summed. Inputs are
rounded to 16 bits of their row's largest magnitude: in one integer for int8, and in two 8-bit integers for int4, a coarse
and a fine one. So they are nearer to their values than bfloat16. Each row of inputs is computed by itself, and threads
share the rows of the matrix: a result depends neither on the other rows nor on the number of threads.

The instructions are AVX2, which multiplies 8-bit and 16-bit integers; VNNI is used where it exists. */

#include <immintrin.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

enum {
    BLOCK = 64,      /* rows of a block of int4 */
    STEP = 64,       /* int8 weights of a step, in four sums that do not wait for each other */
    STRIP = 2048,    /* int8 weights whose products 32 bits can sum */
    COARSE = 127,    /* largest coarse integer */
    FINE = 254,      /* fine steps of a coarse one */
    LARGEST = 32767, /* largest 16-bit integer */
    AHEAD = 512,     /* bytes to prefetch */
    FEW = 16,        /* rows of inputs whose integers are on the stack */
    MANY_PRODUCTS = 1 << 16, /* fewer are computed before other threads have begun */
};

static const float TINY = 1e-30f; /* in place of a largest magnitude of zero */

/* Return the magnitude of the largest number, or NaN if one is infinite or NaN. */
static float largest(const float *x, long count) {
    float most = TINY, invalid = 0;
    for (long i = 0; i < count; i++) {
        float size = fabsf(x[i]);
        most = size > most ? size : most;
        invalid += size * 0;
    }
    return most + invalid;
}

static float from_bfloat16(uint16_t half) {
    uint32_t bits = (uint32_t)half << 16;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static uint16_t to_bfloat16(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16); /* to the nearest, or to the even one */
}

static float sum_of(__m256 v) {
    __m128 half = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    half = _mm_add_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_add_ss(half, _mm_shuffle_ps(half, half, 1)));
}

/* Dot product of a row of weights with inputs of 16 bits. */
static float dot_int8(const int8_t *weight, const int16_t *x, long columns) {
    __m256 total = _mm256_setzero_ps();
    long whole = columns / STEP * STEP;
    for (long start = 0; start < whole; start += STRIP) {
        long stop = start + STRIP < whole ? start + STRIP : whole;
        __m256i part[4] = {_mm256_setzero_si256(), _mm256_setzero_si256(), _mm256_setzero_si256(),
                           _mm256_setzero_si256()};
        for (long c = start; c < stop; c += STEP) {
            _mm_prefetch((const char *)weight + c + AHEAD, _MM_HINT_T0);
            for (int k = 0; k < 4; k++) {
                __m128i bytes = _mm_loadu_si128((const __m128i *)(weight + c + 16 * k));
                __m256i inputs = _mm256_loadu_si256((const __m256i *)(x + c + 16 * k));
                part[k] = _mm256_add_epi32(part[k], _mm256_madd_epi16(_mm256_cvtepi8_epi16(bytes), inputs));
            }
        }
        __m256i sum = _mm256_add_epi32(_mm256_add_epi32(part[0], part[1]), _mm256_add_epi32(part[2], part[3]));
        total = _mm256_add_ps(total, _mm256_cvtepi32_ps(sum));
    }
    float sum = sum_of(total);
    for (long c = whole; c < columns; c++) sum += (float)(weight[c] * x[c]);
    return sum;
}

static void few_int8(const float *x, const int8_t *weight, const uint16_t *scales, float *y, long count, long columns,
                     long rows, int threads) {
    int16_t inputs[count][columns];
    float unit[count];
    for (long n = 0; n < count; n++) {
        unit[n] = largest(x + n * columns, columns) / LARGEST;
        float inverse = 1 / unit[n];
        for (long c = 0; c < columns; c++) inputs[n][c] = (int16_t)lrintf(x[n * columns + c] * inverse);
    }
#pragma omp parallel for schedule(static) num_threads(threads)
    for (long row = 0; row < rows; row++)
        for (long n = 0; n < count; n++)
            y[n * rows + row] = dot_int8(weight + row * columns, inputs[n], columns) * from_bfloat16(scales[row]) * unit[n];
}

/* Multiply x [count, columns] by int8 `weight` [rows, columns] with `scales` [rows] (bfloat16) into y [count, rows]. */
void multiply_int8(const float *x, const int8_t *weight, const uint16_t *scales, float *y, long count, long columns,
                   long rows, int threads) {
    for (long n = 0; n < count; n += FEW)
        few_int8(x + n * columns, weight, scales, y + n * rows, count - n < FEW ? count - n : FEW, columns, rows, threads);
}

/* Add to each of 8 sums the products of 4 bytes (below 16) with 4 signed bytes. */
static inline __m256i add_products(__m256i sums, __m256i bytes, __m256i x) {
#if defined(__AVX512VNNI__) && defined(__AVX512VL__)
    return _mm256_dpbusd_epi32(sums, bytes, x);
#else
    return _mm256_add_epi32(sums, _mm256_madd_epi16(_mm256_maddubs_epi16(bytes, x), _mm256_set1_epi16(1)));
#endif
}

static inline __m256i four_bytes(const int8_t *x) {
    int32_t bytes;
    memcpy(&bytes, x, sizeof bytes);
    return _mm256_set1_epi32(bytes);
}

/* First of the rows that part k of a block holds: parts interleave bytes within 128 bits, so a part has 4 rows from here
   and 4 rows from 16 further on. */
static inline int first_row(int k) { return (k & 3) * 4 + (k >> 2) * 32; }

/* Multiply a row of inputs by the 64 rows of a block: `values` [columns, 32], where byte j holds rows j and j + 32. */
static void multiply_block(const int8_t *coarse, const int8_t *fine, const float *sums, const uint8_t *values,
                           const uint32_t *scales, long stride, long columns, long group, float *y) {
    const __m256i low = _mm256_set1_epi8(15);
    __m256 total[8];
    for (int k = 0; k < 8; k++) total[k] = _mm256_setzero_ps();
    for (long start = 0; start < columns; start += group, scales += stride, sums++) {
        __m256i a[8], b[8]; /* sums of coarse and of fine products */
        for (int k = 0; k < 8; k++) a[k] = b[k] = _mm256_setzero_si256();
        for (long c = start; c < start + group; c += 4) {
            const __m256i *v = (const __m256i *)(values + c * (BLOCK / 2));
            __m256i v0 = _mm256_loadu_si256(v), v1 = _mm256_loadu_si256(v + 1);
            __m256i v2 = _mm256_loadu_si256(v + 2), v3 = _mm256_loadu_si256(v + 3);
            __m256i first_low = _mm256_unpacklo_epi8(v0, v1), first_high = _mm256_unpackhi_epi8(v0, v1);
            __m256i last_low = _mm256_unpacklo_epi8(v2, v3), last_high = _mm256_unpackhi_epi8(v2, v3);
            /* The 4 columns of a row side by side. */
            __m256i rows[4] = {_mm256_unpacklo_epi16(first_low, last_low), _mm256_unpackhi_epi16(first_low, last_low),
                               _mm256_unpacklo_epi16(first_high, last_high), _mm256_unpackhi_epi16(first_high, last_high)};
            __m256i xa = four_bytes(coarse + c), xb = four_bytes(fine + c);
            for (int k = 0; k < 4; k++) {
                __m256i lower = _mm256_and_si256(rows[k], low);
                __m256i upper = _mm256_and_si256(_mm256_srli_epi16(rows[k], 4), low);
                a[k] = add_products(a[k], lower, xa);
                b[k] = add_products(b[k], lower, xb);
                a[k + 4] = add_products(a[k + 4], upper, xa);
                b[k + 4] = add_products(b[k + 4], upper, xb);
            }
        }
        __m256 sum = _mm256_set1_ps(*sums), middle = _mm256_set1_ps(8 * *sums), step = _mm256_set1_ps(1.0f / FINE);
        for (int k = 0; k < 8; k++) {
            const __m128i *pairs = (const __m128i *)(scales + first_row(k));
            __m256i pair = _mm256_set_m128i(_mm_loadu_si128(pairs + 4), _mm_loadu_si128(pairs));
            __m256 scale = _mm256_castsi256_ps(_mm256_slli_epi32(pair, 16));
            __m256 offset = _mm256_castsi256_ps(_mm256_and_si256(pair, _mm256_set1_epi32((int)0xffff0000)));
            __m256 products = _mm256_fmadd_ps(_mm256_cvtepi32_ps(b[k]), step, _mm256_cvtepi32_ps(a[k]));
            total[k] = _mm256_fmadd_ps(scale, _mm256_sub_ps(products, middle), total[k]);
            total[k] = _mm256_fmadd_ps(offset, sum, total[k]);
        }
    }
    for (int k = 0; k < 8; k++) {
        _mm_storeu_ps(y + first_row(k), _mm256_castps256_ps128(total[k]));
        _mm_storeu_ps(y + first_row(k) + 16, _mm256_extractf128_ps(total[k], 1));
    }
}

static void few_int4(const float *x, const uint8_t *values, const uint32_t *scales, float *y, long count, long columns,
                     long rows, long group, int threads) {
    long groups = columns / group, blocks = (rows + BLOCK - 1) / BLOCK;
    int8_t coarse[count][columns], fine[count][columns];
    float unit[count], sums[count][groups];
    for (long n = 0; n < count; n++) {
        const float *row = x + n * columns;
        unit[n] = largest(row, columns) / COARSE;
        float inverse = 1 / unit[n];
        for (long c = 0; c < columns; c++) {
            float exact = row[c] * inverse, nearest = rintf(exact);
            coarse[n][c] = (int8_t)nearest;
            fine[n][c] = (int8_t)rintf((exact - nearest) * FINE);
        }
        for (long g = 0; g < groups; g++) {
            sums[n][g] = 0;
            for (long c = g * group; c < (g + 1) * group; c++) sums[n][g] += row[c] * inverse;
        }
    }
#pragma omp parallel for schedule(static) num_threads(threads)
    for (long block = 0; block < blocks; block++) {
        long first = block * BLOCK, kept = first + BLOCK < rows ? BLOCK : rows - first;
        for (long n = 0; n < count; n++) {
            float products[BLOCK];
            multiply_block(coarse[n], fine[n], sums[n], values + first * (columns / 2), scales + first, blocks * BLOCK,
                           columns, group, products);
            for (long r = 0; r < kept; r++) y[n * rows + first + r] = products[r] * unit[n];
        }
    }
}

/* Multiply x [count, columns] by an int4 matrix into y [count, rows]. `values` [padded / 64, columns, 32] are its
   integers, `scales` [columns / group, padded] pairs of a scale and an offset (bfloat16). */
void multiply_int4(const float *x, const uint8_t *values, const uint32_t *scales, float *y, long count, long columns,
                   long rows, long group, int threads) {
    for (long n = 0; n < count; n += FEW)
        few_int4(x + n * columns, values, scales, y + n * rows, count - n < FEW ? count - n : FEW, columns, rows, group,
                 threads);
}

/* Dequantize rows `first` to `last`, multiples of 64, of an int4 matrix into y [columns, last - first] (bfloat16). */
void dequantize_int4(const uint8_t *values, const uint16_t *scales, uint16_t *y, long first, long last, long padded,
                     long columns, long group, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
    for (long row = first; row < last; row += BLOCK) {
        float scale[BLOCK], offset[BLOCK];
        for (long c = 0; c < columns; c++) {
            if (c % group == 0)
                for (long r = 0; r < BLOCK; r++) {
                    const uint16_t *pair = scales + 2 * (c / group * padded + row + r);
                    scale[r] = from_bfloat16(pair[0]);
                    offset[r] = from_bfloat16(pair[1]) - 8 * scale[r];
                }
            const uint8_t *bytes = values + (row / BLOCK * columns + c) * (BLOCK / 2);
            uint16_t *out = y + c * (last - first) + row - first;
            for (long j = 0; j < BLOCK / 2; j++) {
                out[j] = to_bfloat16((float)(bytes[j] & 15) * scale[j] + offset[j]);
                out[j + BLOCK / 2] = to_bfloat16((float)(bytes[j] >> 4) * scale[j + BLOCK / 2] + offset[j + BLOCK / 2]);
            }
        }
    }
}

/* e to the power of 8 numbers of at most 0: 2 to the power of an integer times a polynomial of the rest. */
static inline __m256 exponential(__m256 x) {
    x = _mm256_mul_ps(_mm256_max_ps(x, _mm256_set1_ps(-87)), _mm256_set1_ps(1.44269504f));
    __m256 whole = _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC), rest = _mm256_sub_ps(x, whole);
    /* The Taylor series of 2 to the power of `rest`, which is at most a half. */
    static const float series[] = {1.5403530e-4f, 1.3333558e-3f, 9.6181291e-3f, 5.5504109e-2f, 2.4022651e-1f, 6.9314718e-1f, 1};
    __m256 sum = _mm256_set1_ps(series[0]);
    for (int i = 1; i < 7; i++) sum = _mm256_fmadd_ps(sum, rest, _mm256_set1_ps(series[i]));
    __m256i exponent = _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(whole), _mm256_set1_epi32(127)), 23);
    return _mm256_mul_ps(sum, _mm256_castsi256_ps(exponent));
}

static inline float dot(const float *a, const float *b, long count) {
    __m256 sum = _mm256_setzero_ps();
    for (long i = 0; i < count; i += 8) sum = _mm256_fmadd_ps(_mm256_loadu_ps(a + i), _mm256_loadu_ps(b + i), sum);
    return sum_of(sum);
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

/* Attend with one step of a row: `heads` [query_heads + 2 * kv_heads, width] are its queries, keys and values, before
   rotation. Keys and values are written to the cache [kv_heads, stride] at `position`, up to which queries attend. */
void attend_step(const float *heads, const float *cos, const float *sin, float *keys, float *values, float *y,
                 long position, long query_heads, long kv_heads, long width, long stride, int threads) {
    const float *key = heads + query_heads * width, *value = key + kv_heads * width;
    for (long h = 0; h < kv_heads; h++) {
        rotate(key + h * width, cos, sin, keys + h * stride + position * width, width);
        memcpy(values + h * stride + position * width, value + h * width, width * sizeof(float));
    }
#pragma omp parallel for schedule(static) num_threads(threads) if (position * query_heads * width > MANY_PRODUCTS)
    for (long h = 0; h < query_heads; h++) {
        long start = h / (query_heads / kv_heads) * stride;
        float query[width];
        rotate(heads + h * width, cos, sin, query, width);
        attend_query(query, keys + start, values + start, y + h * width, position + 1, width);
    }
}

/* RMSNorm: y = x / sqrt(mean(x²) + eps) · gain for x, y [count, width]. */
void rms_norm(const float *x, const float *gain, float *y, long count, long width, float eps, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads) if (count * width > MANY_PRODUCTS)
    for (long n = 0; n < count; n++) {
        const float *row = x + n * width;
        float scale = 1 / sqrtf(dot(row, row, width) / (float)width + eps);
        for (long i = 0; i < width; i++) y[n * width + i] = row[i] * scale * gain[i];
    }
}

/* y = silu(gate) · up, for x [count, 2, width] with gate and up, and y [count, width]. */
void gated_silu(const float *x, float *y, long count, long width, int threads) {
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

/* Streams of a codec: numbers are float, or bfloat16 if `half`; sums are float. */

static inline __m256 load(const void *x, long i, int half) {
    if (!half) return _mm256_loadu_ps((const float *)x + i);
    __m128i bits = _mm_loadu_si128((const __m128i *)((const uint16_t *)x + i));
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
}

static inline void store(void *y, long i, __m256 value, int half) {
    if (!half) {
        _mm256_storeu_ps((float *)y + i, value);
        return;
    }
    __m256i bits = _mm256_castps_si256(value), odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    bits = _mm256_srli_epi32(_mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff))), 16);
    __m128i packed = _mm_packus_epi32(_mm256_castsi256_si128(bits), _mm256_extracti128_si256(bits, 1));
    _mm_storeu_si128((__m128i *)((uint16_t *)y + i), packed);
}

static inline const void *at(const void *x, long i, int half) { return (const char *)x + i * (half ? 2 : 4); }

/* Put `past` steps `tail` before the `steps` of x, times `slope` where they are negative: y [batch, past + steps, width]. */
static inline void extend_as(const void *x, const void *tail, void *y, long batch, long steps, long past, long width,
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
static inline void depthwise_norm_as(const void *x, const void *tail, const float *taps, const float *rest, void *y,
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
static inline void rotate_pairs(const void *x, const float *cos, const float *sin, float *y, long width, float scale,
                                int half) {
    for (long i = 0; i < width; i += 8) _mm256_storeu_ps(y + i, load(x, i, half));
    for (long i = 0; i < width; i += 2) {
        float a = y[i] * scale, b = y[i + 1] * scale;
        y[i] = a * cos[i / 2] - b * sin[i / 2];
        y[i + 1] = a * sin[i / 2] + b * cos[i / 2];
    }
}

/* Sum 8 columns of `values` [used, width] from column `i` on, by the weights of `count` queries. */
static inline void sum_values(const float *weights, const void *values, long i, long used, long lanes, long width,
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
static inline void attend_head(const float *queries, const void *keys, const void *values, void *y, long position,
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

static inline void attend_ring_as(const void *heads, const float *cos, const float *sin, void *keys, void *values,
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
