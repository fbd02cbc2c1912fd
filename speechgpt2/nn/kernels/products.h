/* A matrix as it is stored or packed, and products with it. */

#pragma once

#include <stdint.h>

enum { MOST = 12 }; /* rows of inputs that are multiplied by panels together */

enum Type { FLOAT16, BFLOAT16, INT8, INT4, FLOAT_PANELS, BFLOAT16_PANELS };

typedef struct {
    const void *values; /* [rows, columns]; of INT4 [padded / 64, columns, 32], where byte j holds rows j and j + 32;
                           of panels [rows / 32, columns, 32], or in bfloat16 [rows / 32, columns / 2, 32, 2] */
    const void *scales; /* bfloat16: [rows] of INT8; of INT4 pairs of a scale and an offset [columns / group, padded] */
    const float *bias;  /* [rows], or NULL */
    long rows, columns, group, type;
    float unit; /* by which half precision is multiplied, a power of two */
} Matrix;

/* Multiply x [count, columns] by a matrix and add its bias: y [count, rows]. With panels GELU is applied, if `gelu`. */
void multiply(const Matrix *matrix, const float *x, float *y, long count, long gelu, int threads);

/* The same with bfloat16 inputs and outputs; sums are float. */
void multiply_bfloat16(const Matrix *matrix, const uint16_t *x, uint16_t *y, long count, long gelu, int threads);

/* Products with one type each, without bias but for panels. Integers take up to 16 rows of inputs, panels MOST. */
void multiply_half(const Matrix *matrix, const float *x, float *y, long count, int threads);
void multiply_int8(const Matrix *matrix, const float *x, float *y, long count, int threads);
void multiply_int4(const Matrix *matrix, const float *x, float *y, long count, int threads);
void multiply_panels(const Matrix *matrix, const float *x, float *y, long count, long gelu, int threads);
