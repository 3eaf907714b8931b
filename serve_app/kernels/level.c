/* The arithmetic, compiled once for every CPU level; LEVEL names the table. */
#include "kernels.h"

#include <string.h>

#include <immintrin.h>

typedef float Floats __attribute__((vector_size(64)));
typedef int32_t Ints __attribute__((vector_size(64)));
typedef int8_t Bytes __attribute__((vector_size(16)));
typedef _Float16 Halves __attribute__((vector_size(32)));

#define INLINE static inline __attribute__((always_inline))
/* Arrays that hold registers: constant indices let the compiler take them apart. */
#define UNROLL _Pragma("clang loop unroll(full)")
#define ROLLED _Pragma("clang loop unroll(disable)")
enum { MOST_VECTORS = 16 };

INLINE Floats load(const float *from) {
    Floats value;
    memcpy(&value, from, sizeof value);
    return value;
}
INLINE Floats widen(const _Float16 *from) {
    Halves value;
    memcpy(&value, from, sizeof value);
    return __builtin_convertvector(value, Floats);
}
INLINE void store(float *to, Floats value) { memcpy(to, &value, sizeof value); }
INLINE Floats all(float value) { return value - (Floats){0}; }
INLINE Floats fused(Floats a, Floats b, Floats c) { return __builtin_elementwise_fma(a, b, c); }
INLINE float largest(Floats value) { return __builtin_reduce_max(value); }
INLINE float sum(Floats value) {
    /* By halves: the same tree on every level. */
    float part[LANES];
    store(part, value);
    for (int width = LANES / 2; width > 0; width /= 2)
        for (int lane = 0; lane < width; lane++) part[lane] += part[lane + width];
    return part[0];
}

/* e to the power of what is at most 0. Source: Cody and Waite 1980, with a polynomial of degree 6. */
INLINE Floats exponential(Floats x) {
    x = __builtin_elementwise_max(x, all(-87.0f));
    Floats whole = __builtin_elementwise_roundeven(x * 1.44269504f);
    Floats rest = fused(whole, all(-0.693359375f), x);
    rest = fused(whole, all(2.12194440e-4f), rest);
    Floats power = all(1.3981999507e-3f);
    power = fused(power, rest, all(8.3334519073e-3f));
    power = fused(power, rest, all(4.1665795894e-2f));
    power = fused(power, rest, all(1.6666665459e-1f));
    power = fused(power, rest, all(5.0000001201e-1f));
    power = fused(power, rest * rest, rest + 1.0f);
    Ints exponent = __builtin_convertvector(whole, Ints) + 127;
    return power * (Floats)(exponent << 23);
}

static float inverse_rms(const float *row, size_t width, float eps) {
    Floats squares = {0};
    for (size_t at = 0; at < width; at += LANES) squares = fused(load(row + at), load(row + at), squares);
    return 1.0f / __builtin_sqrtf(sum(squares) / (float)width + eps);
}

/* Where a quad of a tile is. AMX loads a block's rows whole; the others broadcast one quad after the other. */
#if defined(__AMX_INT8__)
enum { FOR_TILES = 1, MOST_TILE_ROWS = 16 };
#else
enum { FOR_TILES = 0, MOST_TILE_ROWS = 12 };
#endif
INLINE size_t quad_at(size_t block, size_t quad, size_t row, size_t rows) {
    return FOR_TILES ? (block * rows + row) * (BLOCK / 4) + quad : (block * (BLOCK / 4) + quad) * rows + row;
}

static void quantize(Tile *tile, const float *states, size_t inputs, const float *norm, float eps) {
    int rows = tile->rows;
    for (int row = 0; row < rows; row++, states += inputs) {
        Floats factor = all(norm ? inverse_rms(states, inputs, eps) : 1.0f);
        for (size_t block = 0; block < inputs / BLOCK; block++) {
            Floats part[2];
            UNROLL
            for (int half = 0; half < 2; half++) {
                size_t at = block * BLOCK + half * LANES;
                part[half] = load(states + at);
                if (norm) part[half] = part[half] * factor * load(norm + at);
            }
            /* Sizes of floats are ordered as their bits, and what isn't a number lies above all: it makes the scale
             * none, and with it the block's products. */
            const Ints size = (Ints){0} + 0x7fffffff;
            int32_t bits = __builtin_reduce_max(__builtin_elementwise_max((Ints)part[0] & size, (Ints)part[1] & size));
            float most;
            memcpy(&most, &bits, sizeof most);
            float inverse = most > 0 ? 127.0f / most : 0.0f;
            Ints whole[2];
            UNROLL
            for (int half = 0; half < 2; half++) {
                whole[half] = __builtin_convertvector(__builtin_elementwise_roundeven(part[half] * inverse), Ints);
                Bytes narrow = __builtin_convertvector(whole[half], Bytes);
                int32_t quads[4];
                memcpy(quads, &narrow, sizeof quads);
                UNROLL
                for (int quad = 0; quad < 4; quad++)
                    tile->quads[quad_at(block, half * 4 + quad, row, rows)] = quads[quad];
            }
            int32_t total = __builtin_reduce_add(whole[0] + whole[1]);
            tile->scales[block * rows + row] = most / 127.0f;
            tile->sums[block * rows + row] = -128 * total;
        }
    }
}

#if defined(__AVX512VNNI__)
enum { MOST_ROWS = 12 };
#else
enum { MOST_ROWS = 4 };
#endif
/* Bytes of weights to ask for ahead, where what the processor guesses comes too late. */
enum { AHEAD = 1024 };

/* `rows` rows of a tile, from `first` on, by `groups` groups. Constant arguments unroll all but the blocks. */
INLINE void multiply_part(int rows, int groups, const Tile *tile, int first, const uint8_t *weights, size_t blocks,
                          float *out, size_t stride) {
    int all_rows = tile->rows;
    const int32_t *sums = tile->sums + first;
    const float *scales = tile->scales + first;
    size_t group = group_bytes(blocks);
    Floats totals[MOST_VECTORS];
    UNROLL
    for (int at = 0; at < rows * groups; at++) totals[at] = (Floats){0};
    for (size_t block = 0; block < blocks; block++) {
        const int32_t *quads = tile->quads + quad_at(block, 0, first, all_rows);
        Ints products[MOST_VECTORS];
#if defined(__AVX512VNNI__)
        UNROLL
        for (int row = 0; row < rows; row++)
            UNROLL
            for (int g = 0; g < groups; g++) products[row * groups + g] = (Ints)_mm512_set1_epi32(sums[row]);
        UNROLL
        for (int quad = 0; quad < BLOCK / 4; quad++) {
            __m512i w[4];
            UNROLL
            for (int g = 0; g < groups; g++) {
                const uint8_t *from = weights + g * group + (block * (BLOCK / 4) + quad) * 64;
                if (rows > 3) __builtin_prefetch(from + groups * group); /* a single row leaves no time for it */
                w[g] = _mm512_loadu_si512(from);
            }
            UNROLL
            for (int row = 0; row < rows; row++) {
                __m512i a = _mm512_set1_epi32(quads[quad_at(0, quad, row, all_rows)]);
                UNROLL
                for (int g = 0; g < groups; g++)
                    products[row * groups + g] =
                        (Ints)_mm512_dpbusd_epi32((__m512i)products[row * groups + g], w[g], a);
            }
        }
#elif defined(__AVX2__)
        (void)sums; /* the weights are made signed instead */
        /* Pairs of products are added in 16 bits: |a| <= 127 times |w| <= 127 twice just fits. */
        const __m256i ones = _mm256_set1_epi16(1), flip = _mm256_set1_epi8((char)0x80);
        __m256i halves[MOST_VECTORS * 2];
        UNROLL
        for (int at = 0; at < rows * groups * 2; at++) halves[at] = _mm256_setzero_si256();
        ROLLED /* unrolled, it would want more registers than there are */
        for (int quad = 0; quad < BLOCK / 4; quad++) {
            UNROLL
            for (int g = 0; g < groups; g++) {
                const uint8_t *from = weights + g * group + (block * (BLOCK / 4) + quad) * 64;
                __m256i w[2], sizes[2];
                __builtin_prefetch(from + AHEAD);
                UNROLL
                for (int half = 0; half < 2; half++) {
                    w[half] = _mm256_xor_si256(_mm256_loadu_si256((const __m256i *)(from + half * 32)), flip);
                    sizes[half] = _mm256_abs_epi8(w[half]);
                }
                UNROLL
                for (int row = 0; row < rows; row++) {
                    __m256i a = _mm256_set1_epi32(quads[quad_at(0, quad, row, all_rows)]);
                    UNROLL
                    for (int half = 0; half < 2; half++) {
                        __m256i pairs = _mm256_maddubs_epi16(sizes[half], _mm256_sign_epi8(a, w[half]));
                        int at = (row * groups + g) * 2 + half;
                        halves[at] = _mm256_add_epi32(halves[at], _mm256_madd_epi16(pairs, ones));
                    }
                }
            }
        }
        UNROLL
        for (int at = 0; at < rows * groups; at++) memcpy(&products[at], &halves[at * 2], sizeof products[at]);
#else
        UNROLL
        for (int row = 0; row < rows; row++)
            UNROLL
            for (int g = 0; g < groups; g++) products[row * groups + g] = sums[row] - (Ints){0};
        UNROLL
        for (int quad = 0; quad < BLOCK / 4; quad++) {
            UNROLL
            for (int row = 0; row < rows; row++) {
                int8_t a[4];
                memcpy(a, quads + quad_at(0, quad, row, all_rows), sizeof a);
                UNROLL
                for (int g = 0; g < groups; g++) {
                    const uint8_t *w = weights + g * group + (block * (BLOCK / 4) + quad) * 64;
                    int32_t dots[LANES];
                    for (int lane = 0; lane < LANES; lane++)
                        dots[lane] = w[lane * 4] * a[0] + w[lane * 4 + 1] * a[1] + w[lane * 4 + 2] * a[2] +
                                     w[lane * 4 + 3] * a[3];
                    Ints dot;
                    memcpy(&dot, dots, sizeof dot);
                    products[row * groups + g] += dot;
                }
            }
        }
#endif
        UNROLL
        for (int g = 0; g < groups; g++) {
            const uint8_t *from = weights + g * group + blocks * (BLOCK * LANES) + block * (LANES * 2);
            Floats scale = widen((const _Float16 *)from);
            UNROLL
            for (int row = 0; row < rows; row++) {
                int at = row * groups + g;
                totals[at] = fused(__builtin_convertvector(products[at], Floats), scale * scales[row], totals[at]);
            }
        }
        sums += all_rows;
        scales += all_rows;
    }
    UNROLL
    for (int row = 0; row < rows; row++)
        UNROLL
        for (int g = 0; g < groups; g++) store(out + row * stride + g * LANES, totals[row * groups + g]);
}

INLINE void multiply_rows(int rows, int width, const Tile *tile, int first, const uint8_t *weights, size_t blocks,
                          int groups, float *out, size_t stride) {
    for (; groups >= width; groups -= width, out += width * LANES, weights += width * group_bytes(blocks))
        multiply_part(rows, width, tile, first, weights, blocks, out, stride);
    for (; groups > 0; groups--, out += LANES, weights += group_bytes(blocks))
        multiply_part(rows, 1, tile, first, weights, blocks, out, stride);
}

#if defined(__AMX_INT8__)
/* As few rows as fill a tile badly go by VNNI. */
enum { FEWEST_TILE_ROWS = 6 };

/* All `rows` rows of a tile by one group. While the tiles multiply a block, the vectors scale the one before. */
INLINE void multiply_group(int rows, const Tile *tile, const uint8_t *weights, size_t blocks, float *out,
                           size_t stride) {
    enum { ACTIVATIONS, WEIGHTS, PRODUCTS };
    int32_t products[2][MOST_TILE_ROWS * LANES] __attribute__((aligned(64)));
    const uint8_t *group_scales = weights + blocks * (BLOCK * LANES);
    const int32_t *sums = tile->sums;
    const float *scales = tile->scales;
    Floats totals[MOST_TILE_ROWS];
    UNROLL
    for (int row = 0; row < rows; row++) totals[row] = (Floats){0};
    for (size_t block = 0; block <= blocks; block++) {
        if (block < blocks) {
            _tile_loadd(ACTIVATIONS, tile->quads + quad_at(block, 0, 0, rows), BLOCK);
            _tile_loadd(WEIGHTS, weights + block * (BLOCK * LANES), LANES * 4);
            _tile_zero(PRODUCTS);
            _tile_dpbsud(PRODUCTS, ACTIVATIONS, WEIGHTS);
            _tile_stored(PRODUCTS, products[block % 2], LANES * 4);
        }
        if (block == 0) continue;
        const int32_t *found = products[(block - 1) % 2];
        Floats scale = widen((const _Float16 *)(group_scales + (block - 1) * (LANES * 2)));
        UNROLL
        for (int row = 0; row < rows; row++) {
            Ints product;
            memcpy(&product, found + row * LANES, sizeof product);
            product += sums[row] - (Ints){0};
            totals[row] = fused(__builtin_convertvector(product, Floats), scale * scales[row], totals[row]);
        }
        sums += rows;
        scales += rows;
    }
    UNROLL
    for (int row = 0; row < rows; row++) store(out + row * stride, totals[row]);
}

static void multiply_tile(const Tile *tile, const uint8_t *weights, size_t blocks, int groups, float *out,
                          size_t stride) {
    struct {
        uint8_t palette, start_row, reserved[14];
        uint16_t row_bytes[16];
        uint8_t rows[16];
    } shapes __attribute__((aligned(64))) = {
        .palette = 1,
        .row_bytes = {BLOCK, LANES * 4, LANES * 4},
        .rows = {(uint8_t)tile->rows, BLOCK / 4, (uint8_t)tile->rows},
    };
    _tile_loadconfig(&shapes);
    for (int group = 0; group < groups; group++, out += LANES, weights += group_bytes(blocks))
#define ROWS(count)                                                      \
    case count:                                                          \
        multiply_group(count, tile, weights, blocks, out, stride);       \
        break
        switch (tile->rows) {
            ROWS(6);
            ROWS(7);
            ROWS(8);
            ROWS(9);
            ROWS(10);
            ROWS(11);
            ROWS(12);
            ROWS(13);
            ROWS(14);
            ROWS(15);
            ROWS(16);
        }
#undef ROWS
    _tile_release(); /* whoever has no tiles in use is switched faster */
}
#endif

static void multiply(const Tile *tile, const uint8_t *weights, size_t blocks, int groups, float *out, size_t stride) {
#if defined(__AMX_INT8__)
    if (tile->rows >= FEWEST_TILE_ROWS) {
        multiply_tile(tile, weights, blocks, groups, out, stride);
        return;
    }
#endif
    for (int first = 0; first < tile->rows; first += MOST_ROWS, out += MOST_ROWS * stride) {
        int left = tile->rows - first;
#define ROWS(count, width)                                                                       \
    case count:                                                                                  \
        multiply_rows(count, width, tile, first, weights, blocks, groups, out, stride);          \
        break
        switch (left < MOST_ROWS ? left : MOST_ROWS) {
#if defined(__AVX512VNNI__)
            ROWS(1, 4);
            ROWS(2, 4);
            ROWS(3, 4);
            ROWS(4, 2);
            ROWS(5, 2);
            ROWS(6, 2);
            ROWS(7, 1);
            ROWS(8, 1);
            ROWS(9, 1);
            ROWS(10, 1);
            ROWS(11, 1);
            ROWS(12, 1);
#else
            ROWS(1, 1);
            ROWS(2, 1);
            ROWS(3, 1);
            ROWS(4, 1);
#endif
        }
#undef ROWS
    }
}

static void swiglu(const float *gate, const float *up, float *out, size_t count) {
    for (size_t at = 0; at < count; at += LANES) {
        Floats x = load(gate + at);
        Floats small = exponential(-__builtin_elementwise_abs(x)); /* of the two exponentials the one below 1 */
        Floats numerator = (Floats)(((Ints)all(1.0f) & (x >= 0)) | ((Ints)small & (x < 0)));
        store(out + at, x * (numerator / (small + 1.0f)) * load(up + at));
    }
}

static void norm_head(float *head, size_t dim, const float *norm, float eps) {
    Floats factor = all(inverse_rms(head, dim, eps));
    for (size_t at = 0; at < dim; at += LANES) store(head + at, load(head + at) * factor * load(norm + at));
}

/* Source: Su et al. 2021 (RoFormer). */
static void rotate(float *head, size_t dim, const float *cosine, const float *sine, float scale) {
    for (size_t at = 0; at < dim / 2; at++) {
        float low = head[at], high = head[at + dim / 2];
        head[at] = (low * cosine[at] - high * sine[at]) * scale;
        head[at + dim / 2] = (high * cosine[at] + low * sine[at]) * scale;
    }
}

static void keep(const float *key, const float *value, size_t dim, _Float16 *to_key, _Float16 *to_value) {
    for (size_t at = 0; at < dim; at += LANES) {
        Halves narrow = __builtin_convertvector(load(key + at), Halves);
        UNROLL
        for (int lane = 0; lane < LANES; lane++) to_key[(at + lane) * TILE_KEYS] = narrow[lane];
        narrow = __builtin_convertvector(load(value + at), Halves);
        memcpy(to_value + at, &narrow, sizeof narrow);
    }
}

/* Lines are what a pass over the cache computes: `heads` queries of each of `rows` rows at successive positions. The
 * registers hold a sum for each of them and each vector of keys or values. */
#if defined(__AVX512F__)
enum { MOST_LINES = 6, MOST_SUMS = 24 };
#else
enum { MOST_LINES = 6, MOST_SUMS = 6 };
#endif
INLINE int vectors_at_once(int lines, int most) {
    int vectors = 1;
    while (vectors < most && lines * vectors * 2 <= MOST_SUMS) vectors *= 2;
    return vectors;
}

/* Where a line's queries, and what comes of them, are. */
INLINE size_t line_at(int line, int heads, size_t dim, size_t row_stride) {
    return line / heads * row_stride + line % heads * dim;
}

/* Scores of `tiles` tiles of keys for each line. */
INLINE void score(int lines, int heads, int tiles, const float *queries, size_t row_stride, size_t dim,
                  const _Float16 *keys, float *scores, size_t stride) {
    Floats totals[MOST_SUMS];
    UNROLL
    for (int at = 0; at < lines * tiles; at++) totals[at] = (Floats){0};
    for (size_t element = 0; element < dim; element++) {
        UNROLL
        for (int tile = 0; tile < tiles; tile++) {
            Floats key = widen(keys + (tile * dim + element) * TILE_KEYS);
            UNROLL
            for (int line = 0; line < lines; line++)
                totals[line * tiles + tile] = fused(all(queries[line_at(line, heads, dim, row_stride) + element]), key,
                                                    totals[line * tiles + tile]);
        }
    }
    UNROLL
    for (int line = 0; line < lines; line++)
        UNROLL
        for (int tile = 0; tile < tiles; tile++)
            store(scores + line * stride + tile * TILE_KEYS, totals[line * tiles + tile]);
}

/* Weighted sums of values over positions, for `vectors` vectors of each line: over `count` positions for those of the
 * first row, and over one more for every row after it. */
INLINE void gather(int rows, int heads, int vectors, const float *weights, size_t stride, const _Float16 *values,
                   size_t dim, size_t count, float *out, size_t row_stride) {
    const int lines = rows * heads;
    Floats totals[MOST_SUMS];
    UNROLL
    for (int at = 0; at < lines * vectors; at++) totals[at] = (Floats){0};
#define ADD(place, from)                                                                                  \
    UNROLL                                                                                                \
    for (int vector = 0; vector < vectors; vector++) {                                                    \
        Floats value = widen(values + (place) * dim + vector * LANES);                                    \
        UNROLL                                                                                            \
        for (int line = (from); line < lines; line++)                                                     \
            totals[line * vectors + vector] =                                                             \
                fused(all(weights[line * stride + (place)]), value, totals[line * vectors + vector]);     \
    }
    for (size_t place = 0; place < count; place++) ADD(place, 0)
    UNROLL
    for (int row = 1; row < rows; row++) ADD(count + row - 1, row * heads)
#undef ADD
    UNROLL
    for (int line = 0; line < lines; line++)
        UNROLL
        for (int vector = 0; vector < vectors; vector++)
            store(out + line_at(line, heads, dim, row_stride) + vector * LANES, totals[line * vectors + vector]);
}

/* Turn the scores of positions first to last, the first of which is `start`, into weights; leave nothing of others. */
INLINE void soften(float *scores, size_t count, size_t start, size_t first, size_t last) {
    const Ints lanes = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    const Floats never = all(-__builtin_inff());
    Floats most = never;
    Ints broken = {0};
    for (size_t at = 0; at < count; at += LANES) {
        Ints place = lanes + (int32_t)(start + at);
        Ints seen = (place >= (int32_t)first) & (place <= (int32_t)last);
        Floats value = (Floats)(((Ints)load(scores + at) & seen) | ((Ints)never & ~seen));
        store(scores + at, value);
        most = __builtin_elementwise_max(most, value);
        broken |= value != value;
    }
    Floats peak = all(largest(most)), total = {0};
    /* What isn't a number, or overflowed on its way to half precision, shall not pass for little weight. */
    int sound = !__builtin_reduce_or(broken) && peak[0] < __builtin_inff();
    for (size_t at = 0; at < count; at += LANES) {
        Floats score = load(scores + at);
        Floats weight = exponential(score - peak);
        weight = (Floats)((Ints)weight & (score > never)); /* nothing, not next to nothing */
        store(scores + at, weight);
        total += weight;
    }
    float inverse = sound ? 1.0f / sum(total) : __builtin_nanf("");
    for (size_t at = 0; at < count; at += LANES) store(scores + at, load(scores + at) * inverse);
}

INLINE void attend_lines(int rows, int heads, const float *queries, size_t row_stride, size_t dim, const _Float16 *keys,
                         const _Float16 *values, size_t first, size_t last, float *scores, float *out) {
    const int lines = rows * heads, tiles = vectors_at_once(lines, 2), vectors = vectors_at_once(lines, 4);
    size_t start = first / TILE_KEYS, end = (last + rows - 1) / TILE_KEYS + 1, stride = (end - start) * TILE_KEYS;
    size_t tile = start;
    for (; tile + tiles <= end; tile += tiles)
        score(lines, heads, tiles, queries, row_stride, dim, keys + tile * TILE_KEYS * dim,
              scores + (tile - start) * TILE_KEYS, stride);
    for (; tile < end; tile++)
        score(lines, heads, 1, queries, row_stride, dim, keys + tile * TILE_KEYS * dim,
              scores + (tile - start) * TILE_KEYS, stride);
    for (int line = 0; line < lines; line++)
        soften(scores + line * stride, stride, start * TILE_KEYS, first, last + line / heads);
    const float *weights = scores + (first - start * TILE_KEYS);
    values += first * dim;
    size_t element = 0, count = last - first + 1;
    for (; element + vectors * LANES <= dim; element += vectors * LANES)
        gather(rows, heads, vectors, weights, stride, values + element, dim, count, out + element, row_stride);
    for (; element < dim; element += LANES)
        gather(rows, heads, 1, weights, stride, values + element, dim, count, out + element, row_stride);
}

static void attend(const float *queries, int rows, int heads, size_t row_stride, size_t dim, const _Float16 *keys,
                   const _Float16 *values, size_t first, size_t last, float *scores, float *out) {
#define LINES(row_count, head_count)                                                                                 \
    case row_count * (MOST_HEADS + 1) + head_count:                                                                  \
        if (row_count == 1 || row_count * head_count <= MOST_LINES)                                                  \
            attend_lines(row_count, head_count, queries, row_stride, dim, keys, values, first, last, scores, out);   \
        break
    switch (rows * (MOST_HEADS + 1) + heads) {
        LINES(1, 1);
        LINES(1, 2);
        LINES(1, 3);
        LINES(1, 4);
        LINES(2, 1);
        LINES(2, 2);
        LINES(2, 3);
        LINES(2, 4);
        LINES(3, 1);
        LINES(3, 2);
        LINES(3, 3);
        LINES(3, 4);
        LINES(4, 1);
        LINES(4, 2);
        LINES(4, 3);
    }
#undef LINES
}

const Level LEVEL = {MOST_TILE_ROWS, MOST_LINES, quantize, multiply, swiglu, norm_head, rotate, keep, attend};
