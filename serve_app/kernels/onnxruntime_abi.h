/* The part of ONNX Runtime's C interface that these operators use.
 *
 * The interface is a table of functions that only ever grows at its end, so that a place in it is as
 * good as a name. Places are those of version 1 of the interface, fields of `CustomOp` those of 16.
 */
#ifndef PARLEY_ONNXRUNTIME_ABI_H
#define PARLEY_ONNXRUNTIME_ABI_H

#include <stddef.h>
#include <stdint.h>

enum { ABI_VERSION = 16 };

typedef void *Status; /* NULL when all is well */
typedef void Value;
typedef void Context;
typedef void KernelInfo;
typedef struct { void *const place[101]; } Api;
typedef struct {
    const Api *(*get_api)(uint32_t version);
    const char *(*version)(void);
} ApiBase;

typedef enum { TYPE_FLOAT = 1, TYPE_UINT8 = 2, TYPE_INT32 = 6, TYPE_INT64 = 7, TYPE_FLOAT16 = 10 } ElementType;
enum { INVALID_ARGUMENT = 2, FAIL = 1 };

typedef struct CustomOp {
    uint32_t version;
    void *(*create)(const struct CustomOp *, const Api *, const KernelInfo *);
    const char *(*name)(const struct CustomOp *);
    const char *(*provider)(const struct CustomOp *);
    ElementType (*input_type)(const struct CustomOp *, size_t);
    size_t (*inputs)(const struct CustomOp *);
    ElementType (*output_type)(const struct CustomOp *, size_t);
    size_t (*outputs)(const struct CustomOp *);
    void (*compute)(void *, Context *);
    void (*destroy)(void *);
    int (*input_characteristic)(const struct CustomOp *, size_t);
    int (*output_characteristic)(const struct CustomOp *, size_t);
    int (*input_memory)(const struct CustomOp *, size_t);
    int (*variadic_inputs)(const struct CustomOp *);
    int (*variadic_inputs_alike)(const struct CustomOp *);
    int (*variadic_outputs)(const struct CustomOp *);
    int (*variadic_outputs_alike)(const struct CustomOp *);
    Status (*create_checked)(const struct CustomOp *, const Api *, const KernelInfo *, void **);
    Status (*compute_checked)(void *, Context *);
} CustomOp;

static inline Status make_status(const Api *api, int code, const char *message) {
    return ((Status (*)(int, const char *))api->place[0])(code, message);
}
static inline Status create_domain(const Api *api, const char *name, void **domain) {
    return ((Status (*)(const char *, void **))api->place[26])(name, domain);
}
static inline Status domain_add(const Api *api, void *domain, const CustomOp *op) {
    return ((Status (*)(void *, const CustomOp *))api->place[27])(domain, op);
}
static inline Status add_domain(const Api *api, void *options, void *domain) {
    return ((Status (*)(void *, void *))api->place[28])(options, domain);
}
static inline Status tensor_data(const Api *api, const Value *value, void **data) {
    return ((Status (*)(const Value *, void **))api->place[51])(value, data);
}
static inline Status dimensions_count(const Api *api, const void *shape, size_t *count) {
    return ((Status (*)(const void *, size_t *))api->place[61])(shape, count);
}
static inline Status dimensions(const Api *api, const void *shape, int64_t *sizes, size_t count) {
    return ((Status (*)(const void *, int64_t *, size_t))api->place[62])(shape, sizes, count);
}
static inline Status shape_of(const Api *api, const Value *value, void **shape) {
    return ((Status (*)(const Value *, void **))api->place[65])(value, shape);
}
static inline Status attribute_float(const Api *api, const KernelInfo *info, const char *name, float *value) {
    return ((Status (*)(const KernelInfo *, const char *, float *))api->place[85])(info, name, value);
}
static inline Status attribute_int(const Api *api, const KernelInfo *info, const char *name, int64_t *value) {
    return ((Status (*)(const KernelInfo *, const char *, int64_t *))api->place[86])(info, name, value);
}
static inline Status input_at(const Api *api, const Context *context, size_t index, const Value **value) {
    return ((Status (*)(const Context *, size_t, const Value **))api->place[90])(context, index, value);
}
static inline Status output_at(const Api *api, Context *context, size_t index, const int64_t *sizes, size_t count,
                               Value **value) {
    return ((Status (*)(Context *, size_t, const int64_t *, size_t, Value **))api->place[91])(context, index, sizes,
                                                                                            count, value);
}
static inline void release_shape(const Api *api, void *shape) {
    ((void (*)(void *))api->place[99])(shape);
}

#endif
