/* Products with weights in half precision, which are widened to float. Rows of inputs share a widened weight, and rows of
   the matrix share a load of inputs. */

#include "products.h"
#include "vectors.h"

enum {
    WIDE = 16,        /* numbers of a `wide` */
    PAIR = 2,         /* rows of a matrix that share a load of inputs */
    ROWS_AT_ONCE = 16 /* of a matrix, which stay in a cache while all inputs are multiplied by them */
};

#ifdef __AVX512DQ__
enum { TILE = 4 }; /* rows of inputs that share a widened weight */
typedef __m512 wide;
INLINE wide wide_zero(void) { return _mm512_setzero_ps(); }
INLINE wide wide_load(const float *x) { return _mm512_loadu_ps(x); }
INLINE wide wide_fma(wide a, wide b, wide sum) { return _mm512_fmadd_ps(a, b, sum); }
INLINE float wide_sum(wide v) { return sum_of(_mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1))); }
INLINE wide widen(const uint16_t *weight, int type) {
    __m256i bits = _mm256_loadu_si256((const __m256i *)weight);
    if (type != BFLOAT16) return _mm512_cvtph_ps(bits);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
}
#else
enum { TILE = 3 }; /* there are no registers for four */
typedef struct {
    __m256 low, high;
} wide;
INLINE wide wide_zero(void) { return (wide){_mm256_setzero_ps(), _mm256_setzero_ps()}; }
INLINE wide wide_load(const float *x) { return (wide){_mm256_loadu_ps(x), _mm256_loadu_ps(x + 8)}; }
INLINE wide wide_fma(wide a, wide b, wide sum) {
    return (wide){_mm256_fmadd_ps(a.low, b.low, sum.low), _mm256_fmadd_ps(a.high, b.high, sum.high)};
}
INLINE float wide_sum(wide v) { return sum_of(_mm256_add_ps(v.low, v.high)); }
INLINE __m256 widen_half(const uint16_t *weight, int type) {
    __m128i bits = _mm_loadu_si128((const __m128i *)weight);
    if (type != BFLOAT16) return _mm256_cvtph_ps(bits);
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
}
INLINE wide widen(const uint16_t *weight, int type) {
    return (wide){widen_half(weight, type), widen_half(weight + 8, type)};
}
#endif

INLINE float widen_one(uint16_t weight, int type) {
    return type == BFLOAT16 ? from_bfloat16(weight) : _cvtsh_ss(weight);
}

/* Multiply `many` rows of inputs, from row `n` on, by `few` rows of a matrix, from row `row` on. */
INLINE void multiply_tile(const Matrix *m, const float *x, float *y, long n, long row, const int many, const int few,
                          const int type) {
    wide sums[PAIR][TILE];
    long columns = m->columns, whole = columns / WIDE * WIDE;
    const uint16_t *weight = (const uint16_t *)m->values + row * columns;
    x += n * columns, y += n * m->rows + row;
    for (int r = 0; r < few; r++)
        for (int i = 0; i < many; i++) sums[r][i] = wide_zero();
    for (long c = 0; c < whole; c += WIDE) {
        wide widened[PAIR];
        for (int r = 0; r < few; r++) {
            prefetch(weight + r * columns + c);
            widened[r] = widen(weight + r * columns + c, type);
        }
        for (int i = 0; i < many; i++) {
            wide inputs = wide_load(x + i * columns + c);
            for (int r = 0; r < few; r++) sums[r][i] = wide_fma(widened[r], inputs, sums[r][i]);
        }
    }
    for (int r = 0; r < few; r++)
        for (int i = 0; i < many; i++) {
            float sum = wide_sum(sums[r][i]);
            for (long c = whole; c < columns; c++) sum += widen_one(weight[r * columns + c], type) * x[i * columns + c];
            y[i * m->rows + r] = sum * m->unit;
        }
}

/* Multiply `many` rows of inputs by the rows `first` to `last` of a matrix; return `many`. */
INLINE long multiply_rows(const Matrix *m, const float *x, float *y, long n, long first, long last, const int many,
                          const int few, const int type) {
    long row = first;
    for (; row + few <= last; row += few) multiply_tile(m, x, y, n, row, many, few, type);
    for (; row < last; row++) multiply_tile(m, x, y, n, row, many, 1, type);
    return many;
}

/* Multiply all inputs by the rows `first` to `last` of a matrix. */
INLINE void multiply_few_rows(const Matrix *m, const float *x, float *y, long count, long first, long last, const int type) {
    for (long n = 0; n < count;) {
        if (count - n >= TILE) n += multiply_rows(m, x, y, n, first, last, TILE, PAIR, type);
        else if (count - n == 3) n += multiply_rows(m, x, y, n, first, last, 3, PAIR, type);
        else if (count - n == 2) n += multiply_rows(m, x, y, n, first, last, 2, PAIR, type);
        else n += multiply_rows(m, x, y, n, first, last, 1, 1, type);
    }
}

void multiply_half(const Matrix *m, const float *x, float *y, long count, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
    for (long first = 0; first < m->rows; first += ROWS_AT_ONCE) { /* types are constants only within the loop */
        long last = first + ROWS_AT_ONCE < m->rows ? first + ROWS_AT_ONCE : m->rows;
        if (m->type == BFLOAT16) multiply_few_rows(m, x, y, count, first, last, BFLOAT16);
        else multiply_few_rows(m, x, y, count, first, last, FLOAT16);
    }
}
