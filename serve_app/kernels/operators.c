/* The operators of the domain "parley": what ONNX Runtime calls, and how their work is shared out. */
#include "kernels.h"
#include "onnxruntime_abi.h"
#include "pool.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

#define EXPORT __attribute__((visibility("default")))

/* Parts of a job per thread: enough that one who is held up leaves the rest to the others. */
enum { PARTS = 4, FEW_ROWS = 4, MOST_HEAD_DIM = 1024 };

extern const Level level_amx, level_vnni, level_avx2, level_plain;
static const Level *level;

/* Operators come one at a time, and share what they need in between; sessions in other threads wait. */
static pthread_mutex_t busy = PTHREAD_MUTEX_INITIALIZER;
static void *scratch;
static size_t scratch_bytes;

static void *take_scratch(size_t bytes) {
    if (bytes > scratch_bytes) {
        free(scratch);
        scratch_bytes = 0;
        if (posix_memalign(&scratch, 64, bytes)) return scratch = NULL;
        scratch_bytes = bytes;
    }
    return scratch;
}

static size_t aligned(size_t bytes) { return (bytes + 63) & ~(size_t)63; }

/* --- what the operators are made of ------------------------------------------------------------------------ */

/* How many of `count` things make a part of a job. */
static size_t at_once(size_t count, size_t parts_per_thread) {
    size_t parts = (size_t)pool_threads() * parts_per_thread;
    return (count + parts - 1) / parts;
}

typedef struct {
    const Level *level;
    Tile *tiles;
    int tile_count, groups, part_groups, swiglu;
    size_t inputs, blocks, width;
    const float *states, *norm, *bias, *residual;
    float eps;
    const uint8_t *weights;
    float *out;
} Linear;

static void quantize_tile(void *data, int index) {
    const Linear *job = data;
    size_t before = 0;
    for (int tile = 0; tile < index; tile++) before += job->tiles[tile].rows;
    job->level->quantize(&job->tiles[index], job->states + before * job->inputs, job->inputs, job->norm, job->eps);
}

/* A range of groups for all rows: its weights stay near while the rows pass by. */
static void multiply_groups(void *data, int index) {
    const Linear *job = data;
    int first = index * job->part_groups;
    int last = first + job->part_groups < job->groups ? first + job->part_groups : job->groups;
    enum { AT_ONCE = 4 };
    float found[TILE_ROWS * AT_ONCE * LANES], active[AT_ONCE / 2 * LANES];
    for (int group = first; group < last; group += AT_ONCE) {
        int groups = last - group < AT_ONCE ? last - group : AT_ONCE;
        const uint8_t *weights = job->weights + group * group_bytes(job->blocks);
        size_t row = 0;
        for (int tile = 0; tile < job->tile_count; tile++) {
            job->level->multiply(&job->tiles[tile], weights, job->blocks, groups, found, AT_ONCE * LANES);
            for (int place = 0; place < job->tiles[tile].rows; place++, row++) {
                const float *from = found + place * AT_ONCE * LANES;
                size_t column = (size_t)group * LANES, count = (size_t)groups * LANES;
                if (job->swiglu) {
                    for (int pair = 0; pair < groups / 2; pair++)
                        job->level->swiglu(from + 2 * pair * LANES, from + (2 * pair + 1) * LANES,
                                           active + pair * LANES, LANES);
                    from = active;
                    column /= 2;
                    count /= 2;
                }
                if (column + count > job->width) count = job->width > column ? job->width - column : 0;
                float *to = job->out + row * job->width + column;
                memcpy(to, from, count * sizeof *to);
                if (job->bias)
                    for (size_t at = 0; at < count; at++) to[at] += job->bias[column + at];
                if (job->residual)
                    for (size_t at = 0; at < count; at++) to[at] += job->residual[row * job->width + column + at];
            }
        }
    }
}

static int run_linear(Linear *job, size_t rows) {
    size_t quads = job->inputs / 4;
    size_t tile_rows = (size_t)job->level->tile_rows;
    job->tile_count = (int)((rows + tile_rows - 1) / tile_rows);
    size_t row_bytes = quads * sizeof(int32_t) + job->blocks * (sizeof(float) + sizeof(int32_t));
    uint8_t *memory = take_scratch(aligned(job->tile_count * sizeof(Tile)) + rows * row_bytes);
    if (!memory) return 0;
    job->tiles = (Tile *)memory;
    memory += aligned(job->tile_count * sizeof(Tile));
    for (int tile = 0; tile < job->tile_count; tile++) {
        size_t count = (rows + job->tile_count - 1 - tile) / job->tile_count; /* as even as can be */
        Tile *made = &job->tiles[tile];
        made->rows = (int)count;
        made->quads = (int32_t *)memory;
        made->scales = (float *)(made->quads + quads * count);
        made->sums = (int32_t *)(made->scales + job->blocks * count);
        memory += count * row_bytes;
    }
    if (rows <= FEW_ROWS)
        quantize_tile(job, 0);
    else
        pool_run(quantize_tile, job, job->tile_count);
    job->part_groups = ((int)at_once((size_t)job->groups, PARTS) + 3) / 4 * 4;
    pool_run(multiply_groups, job, (job->groups + job->part_groups - 1) / job->part_groups);
    return 1;
}

/* Rows that share their passes over the cache. */
typedef struct {
    size_t row;
    int rows;
} Span;

typedef struct {
    const Level *level;
    size_t rows, heads, kv_heads, dim, max_len, window, score_bytes;
    float eps;
    const float *qkv, *cosine, *sine, *query_norm, *key_norm;
    _Float16 *keys, *values;
    const int32_t *slots, *positions;
    float *queries, *out;
    Span *spans;
    size_t span_count, rows_at_once, pairs_at_once;
} Attention;

static void enter_row(const Attention *job, size_t row) {
    size_t dim = job->dim, position = (size_t)job->positions[row];
    const float *from = job->qkv + row * (job->heads + 2 * job->kv_heads) * dim;
    const float *cosine = job->cosine + position * (dim / 2), *sine = job->sine + position * (dim / 2);
    const float scale = 1.0f / __builtin_sqrtf((float)dim);
    float *queries = job->queries + row * job->heads * dim;
    memcpy(queries, from, job->heads * dim * sizeof *queries);
    for (size_t head = 0; head < job->heads; head++) {
        float *query = queries + head * dim;
        if (job->query_norm) job->level->norm_head(query, dim, job->query_norm, job->eps);
        job->level->rotate(query, dim, cosine, sine, scale);
    }
    float key[MOST_HEAD_DIM];
    for (size_t head = 0; head < job->kv_heads; head++) {
        size_t plane = ((size_t)job->slots[row] * job->kv_heads + head) * job->max_len * dim;
        memcpy(key, from + (job->heads + head) * dim, dim * sizeof *key);
        if (job->key_norm) job->level->norm_head(key, dim, job->key_norm, job->eps);
        job->level->rotate(key, dim, cosine, sine, 1.0f);
        job->level->keep(key, from + (job->heads + job->kv_heads + head) * dim, dim,
                         job->keys + plane + position / TILE_KEYS * TILE_KEYS * dim + position % TILE_KEYS,
                         job->values + plane + position * dim);
    }
}

static void enter_rows(void *data, int index) {
    const Attention *job = data;
    size_t first = (size_t)index * job->rows_at_once, last = first + job->rows_at_once;
    for (size_t row = first; row < last && row < job->rows; row++) enter_row(job, row);
}

static void attend_span(const Attention *job, Span span, size_t head) {
    size_t dim = job->dim, row_stride = job->heads * dim;
    size_t last = (size_t)job->positions[span.row], group = job->heads / job->kv_heads;
    size_t first = job->window && last >= job->window ? last - job->window + 1 : 0;
    size_t plane = ((size_t)job->slots[span.row] * job->kv_heads + head) * job->max_len * dim;
    static _Thread_local float *scores;
    static _Thread_local size_t score_bytes;
    if (score_bytes < job->score_bytes) {
        free(scores);
        scores = malloc(job->score_bytes);
        score_bytes = scores ? job->score_bytes : 0;
        if (!scores) abort();
    }
    for (size_t query = 0; query < group; query += MOST_HEADS) {
        size_t at = span.row * row_stride + (head * group + query) * dim;
        int heads = (int)(group - query < MOST_HEADS ? group - query : MOST_HEADS);
        job->level->attend(job->queries + at, span.rows, heads, row_stride, dim, job->keys + plane, job->values + plane,
                           first, last, scores, job->out + at);
    }
}

static void attend_spans(void *data, int index) {
    const Attention *job = data;
    size_t first = (size_t)index * job->pairs_at_once, last = first + job->pairs_at_once;
    for (size_t pair = first; pair < last && pair < job->span_count * job->kv_heads; pair++)
        attend_span(job, job->spans[pair / job->kv_heads], pair % job->kv_heads);
}

/* Put rows at successive positions of one sequence together, as far as they share a pass and see from one position on. */
static void find_spans(Attention *job) {
    size_t group = job->heads / job->kv_heads;
    int heads = (int)(group < MOST_HEADS ? group : MOST_HEADS), most = job->level->lines / heads;
    most = most < 1 ? 1 : most < MOST_SPAN ? most : MOST_SPAN;
    job->span_count = 0;
    for (size_t row = 0; row < job->rows; row++) {
        Span *open = job->span_count ? &job->spans[job->span_count - 1] : NULL;
        if (open && open->rows < most && job->slots[row] == job->slots[row - 1] &&
            job->positions[row] == job->positions[row - 1] + 1 &&
            (!job->window || (size_t)job->positions[row] < job->window))
            open->rows++;
        else
            job->spans[job->span_count++] = (Span){row, 1};
    }
}

static int run_attention(Attention *job) {
    size_t query_bytes = aligned(job->rows * job->heads * job->dim * sizeof(float));
    uint8_t *memory = take_scratch(query_bytes + job->rows * sizeof(Span));
    if (!memory) return 0;
    job->queries = (float *)memory;
    job->spans = (Span *)(memory + query_bytes);
    find_spans(job);
    size_t pairs = job->span_count * job->kv_heads; /* of a span and a head of the cache */
    job->rows_at_once = at_once(job->rows, PARTS);
    job->pairs_at_once = at_once(pairs, PARTS * PARTS); /* more and smaller parts, for they differ in length */
    job->score_bytes = (job->max_len + 2 * TILE_KEYS) * MOST_HEADS * MOST_SPAN * sizeof(float);
    pool_run(enter_rows, job, (int)((job->rows + job->rows_at_once - 1) / job->rows_at_once));
    pool_run(attend_spans, job, (int)((pairs + job->pairs_at_once - 1) / job->pairs_at_once));
    return 1;
}

/* --- what ONNX Runtime sees of them ------------------------------------------------------------------------ */

typedef struct {
    const void *data;
    size_t count, sizes[4], elements;
} Tensor;

typedef struct {
    const Api *api;
    size_t width, heads, kv_heads, dim, window;
    int swiglu;
    float eps;
} Kernel;

static Status refuse(const Kernel *kernel, const char *why) { return make_status(kernel->api, INVALID_ARGUMENT, why); }

static Status read_inputs(const Kernel *kernel, const Context *context, size_t count, Tensor *tensors) {
    const Api *api = kernel->api;
    for (size_t at = 0; at < count; at++) {
        const Value *value;
        void *shape, *data;
        int64_t sizes[4] = {0};
        Tensor *tensor = &tensors[at];
        Status status;
        if ((status = input_at(api, context, at, &value))) return status;
        if ((status = shape_of(api, value, &shape))) return status;
        status = dimensions_count(api, shape, &tensor->count);
        if (!status && tensor->count > 4) status = refuse(kernel, "parley: a tensor has too many dimensions");
        if (!status) status = dimensions(api, shape, sizes, tensor->count);
        release_shape(api, shape);
        if (status || (status = tensor_data(api, value, &data))) return status;
        tensor->elements = 1;
        for (size_t axis = 0; axis < 4; axis++) {
            tensor->sizes[axis] = axis < tensor->count ? (size_t)sizes[axis] : 1;
            tensor->elements *= tensor->sizes[axis];
        }
        tensor->data = tensor->elements ? data : NULL;
    }
    return NULL;
}

static Status make_output(const Kernel *kernel, Context *context, size_t rows, size_t width, float **data) {
    const int64_t sizes[2] = {(int64_t)rows, (int64_t)width};
    Value *value;
    Status status = output_at(kernel->api, context, 0, sizes, 2, &value);
    return status ? status : tensor_data(kernel->api, value, (void **)data);
}

static Status compute_linear(void *made, Context *context) {
    const Kernel *kernel = made;
    Tensor in[5];
    Status status = read_inputs(kernel, context, 5, in);
    if (status) return status;
    enum { STATES, NORM, WEIGHTS, BIAS, RESIDUAL };
    size_t rows = in[STATES].sizes[0], inputs = in[STATES].sizes[1], width = kernel->width;
    Linear job = {.level = level, .inputs = inputs, .blocks = inputs / BLOCK, .width = width, .eps = kernel->eps,
                  .groups = (int)((width + LANES - 1) / LANES) * (kernel->swiglu ? 2 : 1), .swiglu = kernel->swiglu,
                  .states = in[STATES].data, .norm = in[NORM].data, .weights = in[WEIGHTS].data,
                  .bias = in[BIAS].data, .residual = in[RESIDUAL].data};
    if (in[STATES].count != 2 || inputs % BLOCK || in[WEIGHTS].elements != job.groups * group_bytes(job.blocks) ||
        (job.norm && in[NORM].elements != inputs) || (job.bias && in[BIAS].elements != width) ||
        (job.residual && in[RESIDUAL].elements != rows * width))
        return refuse(kernel, "parley.Linear: the tensors don't fit each other");
    if ((status = make_output(kernel, context, rows, width, &job.out)) || rows == 0) return status;
    pthread_mutex_lock(&busy);
    int done = run_linear(&job, rows);
    pthread_mutex_unlock(&busy);
    return done ? NULL : make_status(kernel->api, FAIL, "parley.Linear: out of memory");
}

static Status compute_embed(void *made, Context *context) {
    const Kernel *kernel = made;
    Tensor in[2];
    Status status = read_inputs(kernel, context, 2, in);
    if (status) return status;
    size_t rows = in[0].elements, width = kernel->width, blocks = width / BLOCK, group = group_bytes(blocks);
    const int64_t *ids = in[0].data;
    float *out;
    if (width % BLOCK || in[1].elements % group) return refuse(kernel, "parley.Embed: the tensors don't fit each other");
    for (size_t row = 0; row < rows; row++)
        if (ids[row] < 0 || (size_t)ids[row] >= in[1].elements / group * LANES)
            return refuse(kernel, "parley.Embed: a token is beyond the vocabulary");
    if ((status = make_output(kernel, context, rows, width, &out))) return status;
    for (size_t row = 0; row < rows; row++) {
        size_t lane = (size_t)ids[row] % LANES;
        const uint8_t *from = (const uint8_t *)in[1].data + (size_t)ids[row] / LANES * group;
        const _Float16 *scales = (const _Float16 *)(from + blocks * BLOCK * LANES);
        for (size_t block = 0; block < blocks; block++) {
            float scale = (float)scales[block * LANES + lane];
            for (size_t at = block * BLOCK; at < (block + 1) * BLOCK; at++) {
                int integer = from[at / 4 * (4 * LANES) + lane * 4 + at % 4] - 128;
                out[row * width + at] = (float)integer * scale;
            }
        }
    }
    return NULL;
}

static Status compute_attention(void *made, Context *context) {
    const Kernel *kernel = made;
    Tensor in[9];
    Status status = read_inputs(kernel, context, 9, in);
    if (status) return status;
    enum { QKV, KEYS, VALUES, SLOTS, POSITIONS, COSINE, SINE, QUERY_NORM, KEY_NORM };
    size_t rows = in[QKV].sizes[0], dim = kernel->dim, max_len = in[KEYS].sizes[2];
    Attention job = {.level = level, .rows = rows, .heads = kernel->heads, .kv_heads = kernel->kv_heads, .dim = dim,
                     .max_len = max_len, .window = kernel->window, .eps = kernel->eps, .qkv = in[QKV].data,
                     .keys = (_Float16 *)in[KEYS].data, .values = (_Float16 *)in[VALUES].data,
                     .slots = in[SLOTS].data, .positions = in[POSITIONS].data, .cosine = in[COSINE].data,
                     .sine = in[SINE].data, .query_norm = in[QUERY_NORM].data, .key_norm = in[KEY_NORM].data};
    if (in[QKV].count != 2 || in[QKV].sizes[1] != (job.heads + 2 * job.kv_heads) * dim || in[KEYS].count != 4 ||
        in[KEYS].sizes[1] != job.kv_heads || in[KEYS].sizes[3] != dim || max_len % TILE_KEYS ||
        in[VALUES].elements != in[KEYS].elements || in[SLOTS].elements != rows || in[POSITIONS].elements != rows ||
        in[COSINE].elements != in[SINE].elements || (job.query_norm && in[QUERY_NORM].elements != dim) ||
        (job.key_norm && in[KEY_NORM].elements != dim))
        return refuse(kernel, "parley.Attention: the tensors don't fit each other");
    size_t longest = in[COSINE].elements / (dim / 2) < max_len ? in[COSINE].elements / (dim / 2) : max_len;
    for (size_t row = 0; row < rows; row++)
        if (job.slots[row] < 0 || (size_t)job.slots[row] >= in[KEYS].sizes[0] || job.positions[row] < 0 ||
            (size_t)job.positions[row] >= longest)
            return refuse(kernel, "parley.Attention: a row is outside of the cache");
    if ((status = make_output(kernel, context, rows, job.heads * dim, &job.out)) || rows == 0) return status;
    pthread_mutex_lock(&busy);
    int done = run_attention(&job);
    pthread_mutex_unlock(&busy);
    return done ? NULL : make_status(kernel->api, FAIL, "parley.Attention: out of memory");
}

static Status read_attributes(const Api *api, const KernelInfo *info, const char *const *names, size_t *const *values,
                              size_t count) {
    for (size_t at = 0; at < count; at++) {
        int64_t value;
        Status status = attribute_int(api, info, names[at], &value);
        if (status) return status;
        if (value < 0) return make_status(api, INVALID_ARGUMENT, "parley: an attribute is negative");
        *values[at] = (size_t)value;
    }
    return NULL;
}

static Status keep_kernel(Kernel read, void **made) {
    Kernel *kernel = *made = malloc(sizeof *kernel);
    if (!kernel) return make_status(read.api, FAIL, "parley: out of memory");
    *kernel = read;
    return NULL;
}

static Status create_linear(const CustomOp *op, const Api *api, const KernelInfo *info, void **made) {
    (void)op;
    Kernel read = {.api = api};
    size_t swiglu;
    Status status = read_attributes(api, info, (const char *[]){"width", "swiglu"}, (size_t *[]){&read.width, &swiglu}, 2);
    if (status || (status = attribute_float(api, info, "epsilon", &read.eps))) return status;
    if (read.width == 0) return make_status(api, INVALID_ARGUMENT, "parley.Linear: a width of 0");
    read.swiglu = swiglu != 0;
    return keep_kernel(read, made);
}

static Status create_embed(const CustomOp *op, const Api *api, const KernelInfo *info, void **made) {
    (void)op;
    Kernel read = {.api = api};
    Status status = read_attributes(api, info, (const char *[]){"width"}, (size_t *[]){&read.width}, 1);
    if (status) return status;
    if (read.width == 0) return make_status(api, INVALID_ARGUMENT, "parley.Embed: a width of 0");
    return keep_kernel(read, made);
}

static Status create_attention(const CustomOp *op, const Api *api, const KernelInfo *info, void **made) {
    (void)op;
    Kernel read = {.api = api};
    Status status = read_attributes(api, info, (const char *[]){"num_heads", "kv_num_heads", "head_dim", "window"},
                                    (size_t *[]){&read.heads, &read.kv_heads, &read.dim, &read.window}, 4);
    if (status || (status = attribute_float(api, info, "epsilon", &read.eps))) return status;
    if (read.dim % LANES || read.dim == 0 || read.dim > MOST_HEAD_DIM || read.kv_heads == 0 || read.heads % read.kv_heads)
        return make_status(api, INVALID_ARGUMENT, "parley.Attention: these heads are not supported");
    return keep_kernel(read, made);
}

static const char *name_linear(const CustomOp *op) { return (void)op, "Linear"; }
static const char *name_embed(const CustomOp *op) { return (void)op, "Embed"; }
static const char *name_attention(const CustomOp *op) { return (void)op, "Attention"; }
static size_t five(const CustomOp *op) { return (void)op, 5; }
static size_t two(const CustomOp *op) { return (void)op, 2; }
static size_t nine(const CustomOp *op) { return (void)op, 9; }
static size_t one(const CustomOp *op) { return (void)op, 1; }
static ElementType type_linear(const CustomOp *op, size_t at) { return (void)op, at == 2 ? TYPE_UINT8 : TYPE_FLOAT; }
static ElementType type_embed(const CustomOp *op, size_t at) { return (void)op, at == 0 ? TYPE_INT64 : TYPE_UINT8; }
static ElementType type_attention(const CustomOp *op, size_t at) {
    (void)op;
    return at == 1 || at == 2 ? TYPE_FLOAT16 : at == 3 || at == 4 ? TYPE_INT32 : TYPE_FLOAT;
}
static ElementType type_output(const CustomOp *op, size_t at) { return (void)op, (void)at, TYPE_FLOAT; }
static const char *provider(const CustomOp *op) { return (void)op, (const char *)NULL; }
static int required(const CustomOp *op, size_t at) { return (void)op, (void)at, 0; }
static int no(const CustomOp *op) { return (void)op, 0; }
static int in_memory(const CustomOp *op, size_t at) { return (void)op, (void)at, 0; }

#define OPERATOR(kind, count)                                                                                    \
    {                                                                                                            \
        .version = ABI_VERSION, .name = name_##kind, .provider = provider, .input_type = type_##kind,            \
        .inputs = count, .output_type = type_output, .outputs = one, .destroy = free,                            \
        .input_characteristic = required, .output_characteristic = required, .input_memory = in_memory,          \
        .variadic_inputs = no, .variadic_inputs_alike = no, .variadic_outputs = no, .variadic_outputs_alike = no, \
        .create_checked = create_##kind, .compute_checked = compute_##kind                                       \
    }
static const CustomOp operators[] = {OPERATOR(linear, five), OPERATOR(embed, two), OPERATOR(attention, nine)};

/* Ask the system for AMX's tiles, whose registers it keeps for those alone who asked. The request holds for every
 * thread of the process, and one that is repeated costs nothing. */
static int may_use_tiles(void) {
    enum { REQUEST = 0x1023, TILES = 18 };
    return syscall(SYS_arch_prctl, REQUEST, TILES) == 0;
}

/* Say which levels the processor has, all of x86-64-v3 or v4 among them, and the system keeps the registers of. */
static void look_at_processor(int *avx2, int *vnni, int *amx) {
    unsigned a, b, c, d, low = 0, high = 0;
    *avx2 = *vnni = *amx = 0;
    if (!__get_cpuid(0x80000001, &a, &b, &c, &d) || !(c & bit_LZCNT)) return;
    if (!__get_cpuid(1, &a, &b, &c, &d)) return;
    int has = (c & bit_FMA) && (c & bit_F16C) && (c & bit_MOVBE) && (c & bit_OSXSAVE);
    if (!has || !__get_cpuid_count(7, 0, &a, &b, &c, &d)) return;
    __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    *avx2 = (low & 0x6) == 0x6 && (b & bit_AVX2) && (b & bit_BMI) && (b & bit_BMI2);
    *vnni = *avx2 && (low & 0xe6) == 0xe6 && (b & bit_AVX512F) && (b & bit_AVX512BW) && (b & bit_AVX512DQ) &&
            (b & bit_AVX512VL) && (b & bit_AVX512CD) && (c & bit_AVX512VNNI);
    *amx = *vnni && (low & 0x60000) == 0x60000 && (d >> 24 & 1) && (d >> 25 & 1); /* its tiles, and their int8 */
}

/* Choose the widest instructions that the processor has, or those of a name: "amx", "vnni", "avx2" or "plain".
 * Returns the name of the choice, or NULL where the processor can't follow it. */
EXPORT const char *parley_use_level(const char *name) {
    int avx2, vnni, amx;
    look_at_processor(&avx2, &vnni, &amx);
    if (amx && (!name || !strcmp(name, "amx")) && may_use_tiles()) return level = &level_amx, "amx";
    if (vnni && (!name || !strcmp(name, "vnni"))) return level = &level_vnni, "vnni";
    if (avx2 && (!name || !strcmp(name, "avx2"))) return level = &level_avx2, "avx2";
    if (!name || !strcmp(name, "plain")) return level = &level_plain, "plain";
    return NULL;
}

/* Let at least this many threads work on one operator. */
EXPORT void parley_use_threads(int threads) { pool_grow(threads); }

EXPORT Status RegisterCustomOps(void *options, const ApiBase *base) {
    const Api *api = base->get_api(ABI_VERSION);
    static void *domain;
    pthread_mutex_lock(&busy);
    Status status = NULL;
    if (!level) parley_use_level(NULL);
    if (!domain) {
        status = create_domain(api, "parley", &domain);
        for (size_t at = 0; !status && at < sizeof operators / sizeof *operators; at++)
            status = domain_add(api, domain, &operators[at]);
    }
    pthread_mutex_unlock(&busy);
    return status ? status : add_domain(api, options, domain);
}
