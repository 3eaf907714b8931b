/* What a CPU level implements, and the layouts that all of them share.
 *
 * Every level computes the same bits: integers are exact, and floats are combined in one order, with
 * vectors of 16 lanes whatever the registers hold and multiply-adds only where they are written.
 */
#ifndef PARLEY_KERNELS_H
#define PARLEY_KERNELS_H

#include <stddef.h>
#include <stdint.h>

enum {
    BLOCK = 32,      /* inputs that share a scale, of weights and of activations */
    LANES = 16,      /* outputs that are computed together: a group */
    TILE_ROWS = 16,  /* most rows that any level multiplies together */
    TILE_KEYS = 16,  /* positions that are stored together in the cache of keys */
    MOST_HEADS = 4,  /* query heads that share a pass over the cache */
    MOST_SPAN = 4,   /* rows of a prompt that do */
};

/* Weights of a linear, by groups of 16 outputs. A group holds its blocks' bytes, then their scales:
 *   uint8   [blocks][BLOCK / 4][LANES][4]   integer + 128
 *   float16 [blocks][LANES]
 */
static inline size_t group_bytes(size_t blocks) { return blocks * (BLOCK + 2) * LANES; }

/* Rows of activations in 8 bits, in tiles of up to a level's `tile_rows`; `rows` of them in this one. */
typedef struct {
    int32_t *quads; /* four signed bytes each; [inputs / 4][rows], or [blocks][rows][BLOCK / 4] where AMX reads them */
    float *scales;  /* [blocks][rows] */
    int32_t *sums;  /* [blocks][rows], -128 times the sum of the block's integers */
    int rows;
} Tile;

typedef struct {
    int tile_rows, lines; /* most rows of a tile; most queries of a pass over the cache, unless its row is alone */
    /* Quantize rows of `inputs` floats, after an RMSNorm where `norm` isn't NULL. */
    void (*quantize)(Tile *tile, const float *states, size_t inputs, const float *norm, float eps);
    /* Multiply a tile by `groups` groups of weights, into [rows][groups * LANES] of row length `stride`. */
    void (*multiply)(const Tile *tile, const uint8_t *weights, size_t blocks, int groups, float *out, size_t stride);
    /* silu(gate) * up for `count` elements, a multiple of LANES. */
    void (*swiglu)(const float *gate, const float *up, float *out, size_t count);
    /* RMSNorm of one head, in place. */
    void (*norm_head)(float *head, size_t dim, const float *norm, float eps);
    /* Turn the two halves of a head against each other, and scale it, in place. */
    void (*rotate)(float *head, size_t dim, const float *cosine, const float *sine, float scale);
    /* Write a key into its tile, and a value into its row. */
    void (*keep)(const float *key, const float *value, size_t dim, _Float16 *to_key, _Float16 *to_value);
    /* Attention of `rows` rows at successive positions of one sequence, the first of which sees positions first to last
     * of one cache head, with `heads` (at most MOST_HEADS) queries each. Rows are `row_stride` apart. */
    void (*attend)(const float *queries, int rows, int heads, size_t row_stride, size_t dim, const _Float16 *keys,
                   const _Float16 *values, size_t first, size_t last, float *scores, float *out);
} Level;

#endif
