/* Products with matrices in panels, for a dozen rows of inputs, as a codec has. There arithmetic takes as long as reading.
   A panel has 32 rows side by side, so that the products of a column need neither shuffles nor sums across a register. */

#include "products.h"
#include "vectors.h"

#ifdef __AVX512F__
enum { PANEL = 32 }; /* rows of a panel */

/* Transpose `kept` rows of inputs, and zeros up to `count`, to [columns, count], or to pairs [columns / 2, count]. */
static void transpose(const float *x, float *inputs, long kept, long count, long columns, long type) {
    for (long n = 0; n < count; n++)
        for (long c = 0; c < columns; c++) {
            float value = n < kept ? x[n * columns + c] : 0;
            if (type == FLOAT_PANELS) inputs[c * count + n] = value;
            else ((uint16_t *)inputs)[2 * (c / 2 * count + n) + c % 2] = to_bfloat16(value);
        }
}

/* Multiply `count` transposed rows of inputs, of which `kept` are written, by a panel. */
INLINE void multiply_panel(const Matrix *m, const float *inputs, float *y, long panel, long kept, long gelu,
                           const int count, const int type) {
    const int width = type == FLOAT_PANELS ? 1 : 2; /* columns of a step */
    long steps = m->columns / width;
    const float *values = (const float *)m->values + panel * steps * PANEL;
    __m512 sums[MOST][2], bias[2] = {_mm512_setzero_ps(), _mm512_setzero_ps()};
    if (m->bias) bias[0] = _mm512_loadu_ps(m->bias + panel * PANEL), bias[1] = _mm512_loadu_ps(m->bias + panel * PANEL + 16);
#pragma GCC unroll 12
    for (int n = 0; n < count; n++) sums[n][0] = bias[0], sums[n][1] = bias[1];
    for (long s = 0; s < steps; s++, values += PANEL, inputs += count) {
        prefetch(values), prefetch(values + 16);
        __m512 low = _mm512_loadu_ps(values), high = _mm512_loadu_ps(values + 16);
#pragma GCC unroll 12
        for (int n = 0; n < count; n++) {
            __m512 input = _mm512_set1_ps(inputs[n]);
            if (type == FLOAT_PANELS) {
                sums[n][0] = _mm512_fmadd_ps(low, input, sums[n][0]);
                sums[n][1] = _mm512_fmadd_ps(high, input, sums[n][1]);
            }
#ifdef __AVX512BF16__
            else {
                sums[n][0] = _mm512_dpbf16_ps(sums[n][0], (__m512bh)low, (__m512bh)input);
                sums[n][1] = _mm512_dpbf16_ps(sums[n][1], (__m512bh)high, (__m512bh)input);
            }
#endif
        }
    }
#pragma GCC unroll 12
    for (int n = 0; n < count; n++) {
        float *out = y + n * m->rows + panel * PANEL;
        if (n >= kept) break;
        _mm512_storeu_ps(out, sums[n][0]), _mm512_storeu_ps(out + 16, sums[n][1]);
        for (int i = 0; gelu && i < PANEL; i += 8) _mm256_storeu_ps(out + i, gelu_of(_mm256_loadu_ps(out + i)));
    }
}

/* Multiply up to 12 rows of inputs. */
void multiply_panels(const Matrix *m, const float *x, float *y, long kept, long gelu, int threads) {
    long count = kept > 4 ? MOST : 4;
    float inputs[count * m->columns];
    transpose(x, inputs, kept, count, m->columns, m->type);
#pragma omp parallel for schedule(static) num_threads(threads)
    for (long panel = 0; panel < m->rows / PANEL; panel++) { /* counts and types are constants only within the loop */
        if (m->type == FLOAT_PANELS) {
            if (count == MOST) multiply_panel(m, inputs, y, panel, kept, gelu, MOST, FLOAT_PANELS);
            else multiply_panel(m, inputs, y, panel, kept, gelu, 4, FLOAT_PANELS);
        } else {
            if (count == MOST) multiply_panel(m, inputs, y, panel, kept, gelu, MOST, BFLOAT16_PANELS);
            else multiply_panel(m, inputs, y, panel, kept, gelu, 4, BFLOAT16_PANELS);
        }
    }
}
#else
void multiply_panels(const Matrix *m, const float *x, float *y, long kept, long gelu, int threads) {
    (void)m, (void)x, (void)y, (void)kept, (void)gelu, (void)threads; /* see `best_panels` */
}
#endif

/* Return the largest type of panels that this processor multiplies; a smaller number if it multiplies none. */
long best_panels(void) {
#if defined(__AVX512BF16__)
    return BFLOAT16_PANELS;
#elif defined(__AVX512F__)
    return FLOAT_PANELS;
#else
    return INT4;
#endif
}
