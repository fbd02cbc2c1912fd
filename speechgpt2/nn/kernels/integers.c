/* Products with int8 and int4 weights, which stay integers until their products are summed.

Inputs are rounded to 16 bits of their row's largest magnitude: in one integer for int8, and in two 8-bit integers for
int4, a coarse and a fine one. So they are nearer to their values than bfloat16. AVX2 multiplies 8-bit and 16-bit
integers; VNNI is used where it exists. */

#include "products.h"
#include "vectors.h"

enum {
    BLOCK = 64,     /* rows of a block of int4 */
    STEP = 64,      /* int8 weights of a step, in four sums that do not wait for each other */
    STRIP = 2048,   /* int8 weights whose products 32 bits can sum */
    COARSE = 127,   /* largest coarse integer */
    FINE = 254,     /* fine steps of a coarse one */
    LARGEST = 32767 /* largest 16-bit integer */
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

/* Dot product of a row of weights with inputs of 16 bits. */
static float dot_int8(const int8_t *weight, const int16_t *x, long columns) {
    __m256 total = _mm256_setzero_ps();
    long whole = columns / STEP * STEP;
    for (long start = 0; start < whole; start += STRIP) {
        long stop = start + STRIP < whole ? start + STRIP : whole;
        __m256i part[4] = {_mm256_setzero_si256(), _mm256_setzero_si256(), _mm256_setzero_si256(),
                           _mm256_setzero_si256()};
        for (long c = start; c < stop; c += STEP) {
            prefetch(weight + c);
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

void multiply_int8(const Matrix *m, const float *x, float *y, long count, int threads) {
    const uint16_t *scales = m->scales;
    long columns = m->columns;
    int16_t inputs[count][columns];
    float unit[count];
    for (long n = 0; n < count; n++) {
        unit[n] = largest(x + n * columns, columns) / LARGEST;
        float inverse = 1 / unit[n];
        for (long c = 0; c < columns; c++) inputs[n][c] = (int16_t)lrintf(x[n * columns + c] * inverse);
    }
#pragma omp parallel for schedule(static) num_threads(threads)
    for (long row = 0; row < m->rows; row++) {
        const int8_t *weight = (const int8_t *)m->values + row * columns;
        for (long n = 0; n < count; n++)
            y[n * m->rows + row] = dot_int8(weight, inputs[n], columns) * from_bfloat16(scales[row]) * unit[n];
    }
}

INLINE int32_t four_bytes(const int8_t *x) {
    int32_t bytes;
    memcpy(&bytes, x, sizeof bytes);
    return bytes;
}

/* Multiply a row of inputs by the 64 rows of a block: `values` [columns, 32], where byte j holds rows j and j + 32. GCC
   keeps the sums in registers only if the loops over them are unrolled early. */
#if defined(__AVX512VBMI__) && defined(__AVX512VNNI__)
static void multiply_block(const int8_t *coarse, const int8_t *fine, const float *sums, const uint8_t *values,
                           const uint32_t *scales, long stride, long columns, long group, float *y) {
    const __m512i low = _mm512_set1_epi8(15);
    uint8_t places[2][64]; /* of the byte i of a part: column i % 4 of its row i / 4 */
    for (int i = 0; i < 64; i++) places[0][i] = (uint8_t)(i % 4 * 32 + i / 4), places[1][i] = (uint8_t)(places[0][i] + 16);
    const __m512i place[2] = {_mm512_loadu_si512(places[0]), _mm512_loadu_si512(places[1])};
    __m512 total[4];
#pragma GCC unroll 4
    for (int k = 0; k < 4; k++) total[k] = _mm512_setzero_ps();
    for (long start = 0; start < columns; start += group, scales += stride, sums++) {
        __m512i a[4], b[4]; /* sums of coarse and of fine products */
#pragma GCC unroll 4
        for (int k = 0; k < 4; k++) a[k] = b[k] = _mm512_setzero_si512();
        for (long c = start; c < start + group; c += 4) {
            const uint8_t *v = values + c * (BLOCK / 2);
            prefetch(v), prefetch(v + 64);
            __m512i v0 = _mm512_loadu_si512(v), v1 = _mm512_loadu_si512(v + 64);
            __m512i xa = _mm512_set1_epi32(four_bytes(coarse + c)), xb = _mm512_set1_epi32(four_bytes(fine + c));
#pragma GCC unroll 2
            for (int k = 0; k < 2; k++) {
                __m512i both = _mm512_permutex2var_epi8(v0, place[k], v1);
                __m512i lower = _mm512_and_si512(both, low);
                __m512i upper = _mm512_and_si512(_mm512_srli_epi16(both, 4), low);
                a[k] = _mm512_dpbusd_epi32(a[k], lower, xa);
                b[k] = _mm512_dpbusd_epi32(b[k], lower, xb);
                a[k + 2] = _mm512_dpbusd_epi32(a[k + 2], upper, xa);
                b[k + 2] = _mm512_dpbusd_epi32(b[k + 2], upper, xb);
            }
        }
        __m512 sum = _mm512_set1_ps(*sums), middle = _mm512_set1_ps(8 * *sums), step = _mm512_set1_ps(1.0f / FINE);
#pragma GCC unroll 4
        for (int k = 0; k < 4; k++) {
            __m512i pair = _mm512_loadu_si512(scales + 16 * k);
            __m512 scale = _mm512_castsi512_ps(_mm512_slli_epi32(pair, 16));
            __m512 offset = _mm512_castsi512_ps(_mm512_and_si512(pair, _mm512_set1_epi32((int)0xffff0000)));
            __m512 products = _mm512_fmadd_ps(_mm512_cvtepi32_ps(b[k]), step, _mm512_cvtepi32_ps(a[k]));
            total[k] = _mm512_fmadd_ps(scale, _mm512_sub_ps(products, middle), total[k]);
            total[k] = _mm512_fmadd_ps(offset, sum, total[k]);
        }
    }
#pragma GCC unroll 4
    for (int k = 0; k < 4; k++) _mm512_storeu_ps(y + 16 * k, total[k]);
}
#else
/* Add to each of 8 sums the products of 4 bytes (below 16) with 4 signed bytes. */
INLINE __m256i add_products(__m256i sums, __m256i bytes, __m256i x) {
#if defined(__AVX512VNNI__) && defined(__AVX512VL__)
    return _mm256_dpbusd_epi32(sums, bytes, x);
#else
    return _mm256_add_epi32(sums, _mm256_madd_epi16(_mm256_maddubs_epi16(bytes, x), _mm256_set1_epi16(1)));
#endif
}

/* First of the rows that part k of a block holds: parts interleave bytes within 128 bits, so a part has 4 rows from here
   and 4 rows from 16 further on. */
INLINE int first_row(int k) { return (k & 3) * 4 + (k >> 2) * 32; }

static void multiply_block(const int8_t *coarse, const int8_t *fine, const float *sums, const uint8_t *values,
                           const uint32_t *scales, long stride, long columns, long group, float *y) {
    const __m256i low = _mm256_set1_epi8(15);
    __m256 total[8];
#pragma GCC unroll 8
    for (int k = 0; k < 8; k++) total[k] = _mm256_setzero_ps();
    for (long start = 0; start < columns; start += group, scales += stride, sums++) {
        __m256i a[8], b[8]; /* sums of coarse and of fine products */
#pragma GCC unroll 8
        for (int k = 0; k < 8; k++) a[k] = b[k] = _mm256_setzero_si256();
        for (long c = start; c < start + group; c += 4) {
            const __m256i *v = (const __m256i *)(values + c * (BLOCK / 2));
            prefetch(v), prefetch(v + 2);
            __m256i v0 = _mm256_loadu_si256(v), v1 = _mm256_loadu_si256(v + 1);
            __m256i v2 = _mm256_loadu_si256(v + 2), v3 = _mm256_loadu_si256(v + 3);
            __m256i first_low = _mm256_unpacklo_epi8(v0, v1), first_high = _mm256_unpackhi_epi8(v0, v1);
            __m256i last_low = _mm256_unpacklo_epi8(v2, v3), last_high = _mm256_unpackhi_epi8(v2, v3);
            /* The 4 columns of a row side by side. */
            __m256i rows[4] = {_mm256_unpacklo_epi16(first_low, last_low), _mm256_unpackhi_epi16(first_low, last_low),
                               _mm256_unpacklo_epi16(first_high, last_high), _mm256_unpackhi_epi16(first_high, last_high)};
            __m256i xa = _mm256_set1_epi32(four_bytes(coarse + c)), xb = _mm256_set1_epi32(four_bytes(fine + c));
#pragma GCC unroll 4
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
#pragma GCC unroll 8
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
#pragma GCC unroll 8
    for (int k = 0; k < 8; k++) {
        _mm_storeu_ps(y + first_row(k), _mm256_castps256_ps128(total[k]));
        _mm_storeu_ps(y + first_row(k) + 16, _mm256_extractf128_ps(total[k], 1));
    }
}
#endif

void multiply_int4(const Matrix *m, const float *x, float *y, long count, int threads) {
    const uint8_t *values = m->values;
    const uint32_t *scales = m->scales;
    long columns = m->columns, rows = m->rows, group = m->group;
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
