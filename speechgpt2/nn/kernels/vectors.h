/* Numbers and vectors that the kernels share. The instructions are AVX2 with F16C; AVX-512 is used where it exists. */

#pragma once

#include <immintrin.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline)) /* also where arguments have to be constants */

enum {
    MANY_PRODUCTS = 1 << 16, /* fewer are computed before other threads have begun */
    AHEAD = 6144             /* bytes to prefetch into the second cache; the first has no room for so many */
};

INLINE void prefetch(const void *address) { _mm_prefetch((const char *)address + AHEAD, _MM_HINT_T1); }

INLINE float from_bfloat16(uint16_t half) {
    uint32_t bits = (uint32_t)half << 16;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

INLINE uint16_t to_bfloat16(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16); /* to the nearest, or to the even one */
}

INLINE float sum_of(__m256 v) {
    __m128 half = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    half = _mm_add_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_add_ss(half, _mm_shuffle_ps(half, half, 1)));
}

INLINE float dot(const float *a, const float *b, long count) {
    __m256 sum = _mm256_setzero_ps();
    for (long i = 0; i < count; i += 8) sum = _mm256_fmadd_ps(_mm256_loadu_ps(a + i), _mm256_loadu_ps(b + i), sum);
    return sum_of(sum);
}

/* e to the power of 8 numbers of at most 0: 2 to the power of an integer times a polynomial of the rest. */
INLINE __m256 exponential(__m256 x) {
    x = _mm256_mul_ps(_mm256_max_ps(x, _mm256_set1_ps(-87)), _mm256_set1_ps(1.44269504f));
    __m256 whole = _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC), rest = _mm256_sub_ps(x, whole);
    /* The Taylor series of 2 to the power of `rest`, which is at most a half. */
    static const float series[] = {1.5403530e-4f, 1.3333558e-3f, 9.6181291e-3f, 5.5504109e-2f, 2.4022651e-1f, 6.9314718e-1f, 1};
    __m256 sum = _mm256_set1_ps(series[0]);
    for (int i = 1; i < 7; i++) sum = _mm256_fmadd_ps(sum, rest, _mm256_set1_ps(series[i]));
    __m256i exponent = _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(whole), _mm256_set1_epi32(127)), 23);
    return _mm256_mul_ps(sum, _mm256_castsi256_ps(exponent));
}

/* GELU of 8 numbers. The error function is that of Abramowitz and Stegun, 7.1.26, exact to 1.5e-7. */
INLINE __m256 gelu_of(__m256 x) {
    static const float series[] = {1.061405429f, -1.453152027f, 1.421413741f, -0.284496736f, 0.254829592f};
    const __m256 one = _mm256_set1_ps(1), sign = _mm256_set1_ps(-0.0f), half = _mm256_set1_ps(0.5f);
    __m256 z = _mm256_mul_ps(_mm256_andnot_ps(sign, x), _mm256_set1_ps(0.70710678f));
    __m256 t = _mm256_div_ps(one, _mm256_fmadd_ps(_mm256_set1_ps(0.3275911f), z, one)), sum = _mm256_set1_ps(series[0]);
    for (int i = 1; i < 5; i++) sum = _mm256_fmadd_ps(sum, t, _mm256_set1_ps(series[i]));
    __m256 rest = _mm256_mul_ps(_mm256_mul_ps(sum, t), exponential(_mm256_mul_ps(_mm256_xor_ps(z, sign), z)));
    __m256 error = _mm256_or_ps(_mm256_sub_ps(one, rest), _mm256_and_ps(sign, x));
    return _mm256_mul_ps(_mm256_mul_ps(half, x), _mm256_add_ps(one, error));
}
