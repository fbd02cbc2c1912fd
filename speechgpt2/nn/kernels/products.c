/* Products with matrices as they are stored, y = x Wᵀ, for few rows of inputs.

At best a product takes as long as reading the matrix. Each row of inputs is summed in the same order whatever the others
are, and threads share the rows of the matrix: a result depends neither on the other rows nor on the number of threads. */

#include "products.h"

#include "vectors.h"

enum {
    FEW = 16,          /* rows of inputs whose integers are on the stack */
    ON_STACK = 1 << 18 /* numbers that are widened together */
};

void multiply(const Matrix *matrix, const float *x, float *y, long count, long gelu, int threads) {
    long columns = matrix->columns, rows = matrix->rows, is_panels = matrix->type >= FLOAT_PANELS;
    long most = is_panels ? MOST : matrix->type >= INT8 ? FEW : count;
    for (long n = 0, few; n < count; n += few) {
        const float *inputs = x + n * columns;
        few = count - n < most ? count - n : most;
        if (is_panels) multiply_panels(matrix, inputs, y + n * rows, few, gelu, threads);
        else if (matrix->type == INT4) multiply_int4(matrix, inputs, y + n * rows, few, threads);
        else if (matrix->type == INT8) multiply_int8(matrix, inputs, y + n * rows, few, threads);
        else multiply_half(matrix, inputs, y + n * rows, few, threads);
    }
    for (long n = 0; matrix->bias && !is_panels && n < count; n++)
        for (long row = 0; row < rows; row++) y[n * rows + row] += matrix->bias[row];
}

void multiply_bfloat16(const Matrix *matrix, const uint16_t *x, uint16_t *y, long count, long gelu, int threads) {
    long columns = matrix->columns, rows = matrix->rows, most = ON_STACK / (columns + rows);
    most = most < 1 ? 1 : most < MOST ? most : MOST;
    for (long n = 0, few; n < count; n += few) {
        few = count - n < most ? count - n : most;
        float inputs[few * columns], outputs[few * rows];
        for (long i = 0; i < few * columns; i++) inputs[i] = from_bfloat16(x[n * columns + i]);
        multiply(matrix, inputs, outputs, few, gelu, threads);
        for (long i = 0; i < few * rows; i++) y[n * rows + i] = to_bfloat16(outputs[i]);
    }
}
