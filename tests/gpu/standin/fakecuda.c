/* A CUDA runtime without a GPU, for tests: LD_PRELOAD it, and torch's own host code runs as on a
 * machine with GPUs - dispatch, device checks, allocator, streams, set_sync_debug_mode, determinism
 * alerts, fused optimizers' checks - while kernels do nothing. What comes back from the device is
 * zero. Counts every call that launches, copies or waits.
 *
 * FAKE_CUDA_DEVICES (2), FAKE_CUDA_MIB (80000, each device), FAKE_CUDA_MAJOR (9: bf16; 7: none).
 */
#define _GNU_SOURCE
#include <cuda_runtime_api.h>
#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define OUT __attribute__((visibility("default")))
static __thread int current;
static __thread cudaError_t last;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static long env(const char *name, long other) {
    const char *v = getenv(name);
    return v && *v ? atol(v) : other;
}
static int devices(void) { return (int)env("FAKE_CUDA_DEVICES", 2); }
static size_t limit(void) { return (size_t)env("FAKE_CUDA_MIB", 80000) << 20; }

/* ---- counters, by name; read with ctypes ---- */
enum {
    LAUNCH,
    H2D_PAGEABLE,
    H2D_PINNED,
    D2H_PAGEABLE,
    D2H_PINNED,
    D2D,
    PEER,
    MEMSET,
    STREAM_SYNC,
    EVENT_SYNC,
    DEVICE_SYNC,
    EVENT_QUERY,
    EVENT_RECORD,
    HOST_ALLOC,
    MALLOC,
    LIBRARY,
    COUNTERS
};
static const char *names[] = {"launch",       "h2d_pageable", "h2d_pinned",  "d2h_pageable",
                              "d2h_pinned",   "d2d",          "peer",        "memset",
                              "stream_sync",  "event_sync",   "device_sync", "event_query",
                              "event_record", "host_alloc",   "malloc",      "library"};
static long counts[COUNTERS], bytes[COUNTERS], largest[COUNTERS];
OUT void fake_count(int what, long size) {
    __atomic_add_fetch(&counts[what], 1, __ATOMIC_RELAXED);
    __atomic_add_fetch(&bytes[what], size, __ATOMIC_RELAXED);
    if (size > largest[what])
        largest[what] = size;
}
OUT void fake_library(const char *name);
OUT int fake_counters(void) { return COUNTERS; }
OUT const char *fake_counter(int what, long *count, long *size, long *most) {
    *count = counts[what];
    *size = bytes[what];
    *most = largest[what];
    return names[what];
}
OUT void fake_reset(void) {
    memset(counts, 0, sizeof counts);
    memset(bytes, 0, sizeof bytes);
    memset(largest, 0, sizeof largest);
}

/* ---- kernels by name ---- */
#define KERNELS (1 << 20)
static struct {
    const void *entry;
    const char *name;
    long count;
} kernels[KERNELS];
static unsigned slot(const void *entry) {
    unsigned place = (unsigned)(((size_t)entry >> 4) * 2654435761u) % KERNELS;
    while (kernels[place].entry && kernels[place].entry != entry)
        place = (place + 1) % KERNELS;
    return place;
}
static char *fat[1];
OUT void **__cudaRegisterFatBinary(void *x) { return (void **)fat; }
OUT void __cudaRegisterFatBinaryEnd(void **h) {}
OUT void __cudaUnregisterFatBinary(void **h) {}
OUT void __cudaRegisterVar(void **h, char *a, char *b, const char *c, int d, size_t e, int f,
                           int g) {}
OUT void __cudaRegisterFunction(void **h, const char *fun, char *device, const char *name, int t,
                                void *a, void *b, void *c, void *d, int *e) {
    unsigned place = slot(fun);
    kernels[place].entry = fun;
    kernels[place].name = name;
}
static void launched(const void *entry) {
    unsigned place = slot(entry);
    kernels[place].entry = entry;
    __atomic_add_fetch(&kernels[place].count, 1, __ATOMIC_RELAXED);
    fake_count(LAUNCH, 0);
}
OUT void fake_kernels(void (*each)(const char *, long)) {
    for (unsigned i = 0; i < KERNELS; i++)
        if (kernels[i].count) {
            each(kernels[i].name ? kernels[i].name : "?", kernels[i].count);
            kernels[i].count = 0;
        }
}
static __thread struct {
    dim3 grid, block;
    size_t shared;
    void *stream;
} pushed;
OUT unsigned __cudaPushCallConfiguration(dim3 g, dim3 b, size_t s, struct CUstream_st *stream) {
    pushed.grid = g;
    pushed.block = b;
    pushed.shared = s;
    pushed.stream = stream;
    return 0;
}
OUT cudaError_t __cudaPopCallConfiguration(dim3 *g, dim3 *b, size_t *s, void *stream) {
    *g = pushed.grid;
    *b = pushed.block;
    *s = pushed.shared;
    *(void **)stream = pushed.stream;
    return 0;
}
OUT cudaError_t __cudaGetKernel(cudaKernel_t *k, const void *entry) {
    *k = (cudaKernel_t)entry;
    return 0;
}
OUT cudaError_t __cudaLaunchKernel(cudaKernel_t k, dim3 g, dim3 b, void **a, size_t s,
                                   cudaStream_t st) {
    launched(k);
    return 0;
}
OUT cudaError_t cudaLaunchKernel(const void *f, dim3 g, dim3 b, void **a, size_t s,
                                 cudaStream_t st) {
    launched(f);
    return 0;
}
OUT cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t *c, const void *f, void **a) {
    launched(f);
    return 0;
}

/* ---- devices ---- */
OUT cudaError_t cudaGetDeviceCount(int *n) {
    *n = devices();
    return *n ? 0 : (last = cudaErrorNoDevice);
}
OUT cudaError_t cudaGetDevice(int *d) {
    *d = current;
    return 0;
}
OUT cudaError_t cudaSetDevice(int d) {
    if (d < 0 || d >= devices())
        return last = cudaErrorInvalidDevice;
    current = d;
    return 0;
}
OUT cudaError_t cudaDriverGetVersion(int *v) {
    *v = (int)env("FAKE_CUDA_DRIVER", 13000);
    return 0;
}
OUT cudaError_t cudaRuntimeGetVersion(int *v) {
    *v = 13000;
    return 0;
}
OUT cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *p, int d) {
    memset(p, 0, sizeof *p);
    snprintf(p->name, sizeof p->name, "Fake GPU");
    p->totalGlobalMem = limit();
    p->sharedMemPerBlock = 49152;
    p->sharedMemPerBlockOptin = 232448;
    p->sharedMemPerMultiprocessor = 233472;
    p->regsPerBlock = p->regsPerMultiprocessor = 65536;
    p->warpSize = 32;
    p->maxThreadsPerBlock = 1024;
    p->maxThreadsDim[0] = p->maxThreadsDim[1] = 1024;
    p->maxThreadsDim[2] = 64;
    p->maxGridSize[0] = 2147483647;
    p->maxGridSize[1] = p->maxGridSize[2] = 65535;
    p->major = (int)env("FAKE_CUDA_MAJOR", 9);
    p->minor = 0;
    p->multiProcessorCount = 132;
    p->maxThreadsPerMultiProcessor = 2048;
    p->l2CacheSize = 50 << 20;
    p->unifiedAddressing = 1;
    p->maxBlocksPerMultiProcessor = 32;
    p->pciBusID = d + 1;
    p->memoryBusWidth = 5120;
    p->textureAlignment = 512;
    p->concurrentKernels = 1;
    p->asyncEngineCount = 3;
    p->canMapHostMemory = 1;
    p->uuid.bytes[0] = (char)d;
    return 0;
}
OUT cudaError_t cudaDeviceGetAttribute(int *v, enum cudaDeviceAttr a, int d) {
    switch (a) {
    case cudaDevAttrMaxThreadsPerBlock:
        *v = 1024;
        break;
    case cudaDevAttrMultiProcessorCount:
        *v = 132;
        break;
    case cudaDevAttrComputeCapabilityMajor:
        *v = (int)env("FAKE_CUDA_MAJOR", 9);
        break;
    case cudaDevAttrComputeCapabilityMinor:
        *v = 0;
        break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
        *v = 232448;
        break;
    case cudaDevAttrMaxSharedMemoryPerBlock:
        *v = 49152;
        break;
    case cudaDevAttrWarpSize:
        *v = 32;
        break;
    case cudaDevAttrMaxThreadsPerMultiProcessor:
        *v = 2048;
        break;
    case cudaDevAttrMaxRegistersPerBlock:
        *v = 65536;
        break;
    case cudaDevAttrMaxGridDimX:
        *v = 2147483647;
        break;
    default:
        *v = 0;
    }
    return 0;
}
OUT cudaError_t cudaDeviceCanAccessPeer(int *v, int a, int b) {
    *v = 1;
    return 0;
}
OUT cudaError_t cudaDeviceEnablePeerAccess(int d, unsigned f) { return 0; }
OUT cudaError_t cudaDeviceGetPCIBusId(char *s, int n, int d) {
    snprintf(s, n, "0000:0%d:00.0", d + 1);
    return 0;
}
OUT cudaError_t cudaDeviceGetStreamPriorityRange(int *a, int *b) {
    if (a)
        *a = 0;
    if (b)
        *b = -5;
    return 0;
}
OUT cudaError_t cudaDeviceSynchronize(void) {
    fake_count(DEVICE_SYNC, 0);
    return 0;
}
OUT cudaError_t cudaGetLastError(void) {
    cudaError_t e = last;
    last = 0;
    return e;
}
OUT cudaError_t cudaPeekAtLastError(void) { return last; }
OUT const char *cudaGetErrorString(cudaError_t e) {
    return e == cudaErrorMemoryAllocation ? "out of memory"
           : e == cudaErrorInvalidDevice  ? "invalid device ordinal"
                                          : "fake error";
}
OUT const char *cudaGetErrorName(cudaError_t e) { return "cudaErrorFake"; }

/* ---- memory ---- */
#define BLOCKS (1 << 18)
static struct block {
    char *start;
    size_t size;
    int device;
} blocks[BLOCKS]; /* device -1: pinned host memory */
static size_t used[64];
static cudaError_t add(void **p, size_t size, int device) {
    pthread_mutex_lock(&lock);
    cudaError_t e = 0;
    if (device >= 0 && used[device] + size > limit())
        e = last = cudaErrorMemoryAllocation;
    else {
        *p = mmap(0, size ? size : 1, PROT_READ | PROT_WRITE,
                  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (*p == MAP_FAILED)
            e = last = cudaErrorMemoryAllocation;
        else
            for (int i = 0; i < BLOCKS; i++)
                if (!blocks[i].start) {
                    blocks[i] = (struct block){*p, size ? size : 1, device};
                    if (device >= 0)
                        used[device] += size;
                    break;
                }
    }
    pthread_mutex_unlock(&lock);
    return e;
}
static struct block *find(const void *p) {
    for (int i = 0; i < BLOCKS; i++)
        if (blocks[i].start && (char *)p >= blocks[i].start &&
            (char *)p < blocks[i].start + blocks[i].size)
            return &blocks[i];
    return 0;
}
static struct block *
look(const void *p) { /* the table is filled from its start: stop at a long gap */
    int gap = 0;
    for (int i = 0; i < BLOCKS && gap < 4096; i++) {
        if (!blocks[i].start) {
            gap++;
            continue;
        }
        gap = 0;
        if ((char *)p >= blocks[i].start && (char *)p < blocks[i].start + blocks[i].size)
            return &blocks[i];
    }
    return 0;
}
static cudaError_t drop(void *p) {
    pthread_mutex_lock(&lock);
    struct block *b = p ? find(p) : 0;
    if (b) {
        if (b->device >= 0)
            used[b->device] -= b->size;
        munmap(b->start, b->size);
        b->start = 0;
    }
    pthread_mutex_unlock(&lock);
    return 0;
}
OUT cudaError_t cudaMalloc(void **p, size_t n) {
    fake_count(MALLOC, n);
    return add(p, n, current);
}
OUT cudaError_t cudaMallocAsync(void **p, size_t n, cudaStream_t s) { return add(p, n, current); }
OUT cudaError_t cudaFree(void *p) { return drop(p); }
OUT cudaError_t cudaFreeAsync(void *p, cudaStream_t s) { return drop(p); }
OUT cudaError_t cudaHostAlloc(void **p, size_t n, unsigned f) {
    fake_count(HOST_ALLOC, n);
    return add(p, n, -1);
}
OUT cudaError_t cudaFreeHost(void *p) { return drop(p); }
OUT cudaError_t cudaHostRegister(void *p, size_t n, unsigned f) { return 0; }
OUT cudaError_t cudaHostUnregister(void *p) { return 0; }
OUT cudaError_t cudaMemGetInfo(size_t *f, size_t *t) {
    *t = limit();
    *f = limit() - used[current];
    return 0;
}
OUT cudaError_t cudaPointerGetAttributes(struct cudaPointerAttributes *a, const void *p) {
    memset(a, 0, sizeof *a);
    pthread_mutex_lock(&lock);
    struct block *b = look(p);
    a->type = !b              ? cudaMemoryTypeUnregistered
              : b->device < 0 ? cudaMemoryTypeHost
                              : cudaMemoryTypeDevice;
    a->device = b && b->device >= 0 ? b->device : 0;
    a->devicePointer = (void *)p;
    a->hostPointer = b && b->device < 0 ? (void *)p : 0;
    pthread_mutex_unlock(&lock);
    return 0;
}
static int place(const void *p) {
    pthread_mutex_lock(&lock);
    struct block *b = look(p);
    int d = b ? b->device : -2;
    pthread_mutex_unlock(&lock);
    return d;
}
static cudaError_t moved(void *to, const void *from, size_t n) {
    int t = place(to), f = place(from);
    if (t >= 0 && f >= 0) {
        if (t != f)
            fake_count(PEER, n);
        else
            fake_count(D2D, n);
    } else if (t >= 0)
        fake_count(f == -1 ? H2D_PINNED : H2D_PAGEABLE, n);
    else if (f >= 0) {
        fake_count(t == -1 ? D2H_PINNED : D2H_PAGEABLE, n);
        memset(to, 0, n);
    } else
        memcpy(to, from, n);
    return 0;
}
OUT cudaError_t cudaMemcpy(void *to, const void *from, size_t n, enum cudaMemcpyKind k) {
    return moved(to, from, n);
}
OUT cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t n, enum cudaMemcpyKind k,
                                cudaStream_t s) {
    return moved(to, from, n);
}
OUT cudaError_t cudaMemcpyPeerAsync(void *to, int td, const void *from, int fd, size_t n,
                                    cudaStream_t s) {
    fake_count(PEER, n);
    return 0;
}
OUT cudaError_t cudaMemset(void *p, int v, size_t n) {
    fake_count(MEMSET, n);
    return 0;
}
OUT cudaError_t cudaMemsetAsync(void *p, int v, size_t n, cudaStream_t s) {
    fake_count(MEMSET, n);
    return 0;
}

/* ---- streams and events ---- */
static void *token(void) { return calloc(1, 64); }
OUT cudaError_t cudaStreamCreate(cudaStream_t *s) {
    *s = token();
    return 0;
}
OUT cudaError_t cudaStreamCreateWithFlags(cudaStream_t *s, unsigned f) {
    *s = token();
    return 0;
}
OUT cudaError_t cudaStreamCreateWithPriority(cudaStream_t *s, unsigned f, int p) {
    *s = token();
    return 0;
}
OUT cudaError_t cudaStreamDestroy(cudaStream_t s) { return 0; }
OUT cudaError_t cudaStreamQuery(cudaStream_t s) { return 0; }
OUT cudaError_t cudaStreamSynchronize(cudaStream_t s) {
    fake_count(STREAM_SYNC, 0);
    return 0;
}
OUT cudaError_t cudaStreamWaitEvent(cudaStream_t s, cudaEvent_t e, unsigned f) { return 0; }
OUT cudaError_t cudaStreamGetPriority(cudaStream_t s, int *p) {
    *p = 0;
    return 0;
}
OUT cudaError_t cudaStreamIsCapturing(cudaStream_t s, enum cudaStreamCaptureStatus *c) {
    *c = 0;
    return 0;
}
#if CUDART_VERSION >= 13000
#define EDGES const cudaGraphEdgeData **e,
#else
#define EDGES
#endif
OUT cudaError_t cudaStreamGetCaptureInfo(cudaStream_t s, enum cudaStreamCaptureStatus *c,
                                         unsigned long long *i, cudaGraph_t *g,
                                         const cudaGraphNode_t **d, EDGES size_t *n) {
    *c = 0;
    if (i)
        *i = 0;
    if (n)
        *n = 0;
    return 0;
}
OUT cudaError_t cudaThreadExchangeStreamCaptureMode(enum cudaStreamCaptureMode *m) { return 0; }
OUT cudaError_t cudaEventCreate(cudaEvent_t *e) {
    *e = token();
    return 0;
}
OUT cudaError_t cudaEventCreateWithFlags(cudaEvent_t *e, unsigned f) {
    *e = token();
    return 0;
}
OUT cudaError_t cudaEventDestroy(cudaEvent_t e) {
    free(e);
    return 0;
}
OUT cudaError_t cudaEventElapsedTime(float *t, cudaEvent_t a, cudaEvent_t b) {
    *t = 0.01f;
    return 0;
}
OUT cudaError_t cudaEventQuery(cudaEvent_t e) {
    fake_count(EVENT_QUERY, 0);
    return 0;
}
OUT cudaError_t cudaEventRecord(cudaEvent_t e, cudaStream_t s) {
    fake_count(EVENT_RECORD, 0);
    return 0;
}
OUT cudaError_t cudaEventRecordWithFlags(cudaEvent_t e, cudaStream_t s, unsigned f) {
    fake_count(EVENT_RECORD, 0);
    return 0;
}
OUT cudaError_t cudaEventSynchronize(cudaEvent_t e) {
    fake_count(EVENT_SYNC, 0);
    return 0;
}

/* ---- functions ---- */
OUT cudaError_t cudaFuncGetAttributes(struct cudaFuncAttributes *a, const void *f) {
    memset(a, 0, sizeof *a);
    a->maxThreadsPerBlock = 1024;
    a->numRegs = 32;
    a->binaryVersion = a->ptxVersion = 90;
    return 0;
}
OUT cudaError_t cudaFuncSetAttribute(const void *f, enum cudaFuncAttribute a, int v) { return 0; }
OUT cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *n, const void *f, int b,
                                                                       size_t s, unsigned fl) {
    *n = 2;
    return 0;
}
static int nothing(void) { return 0; }
OUT cudaError_t cudaGetDriverEntryPointByVersion(const char *n, void **p, unsigned v,
                                                 unsigned long long f,
                                                 enum cudaDriverEntryPointQueryResult *r) {
    void *own = dlsym(RTLD_DEFAULT, n);
    *p = own ? own : (void *)nothing;
    if (r)
        *r = cudaDriverEntryPointSuccess;
    return 0;
}
OUT cudaError_t cudaGetSymbolAddress(void **p, const void *s) {
    static char room[4096];
    *p = room;
    return 0;
}
OUT cudaError_t cudaDeviceGetDefaultMemPool(cudaMemPool_t *p, int d) {
    *p = token();
    return 0;
}

/* ---- libraries: what they are asked for is counted ---- */
OUT void fake_library(const char *name) { fake_count(LIBRARY, 0); }
OUT int cublasCreate_v2(void **h) {
    *h = token();
    return 0;
}
OUT int cublasLtCreate(void **h) {
    *h = token();
    return 0;
}
OUT int cublasGetMathMode(void *h, int *m) {
    *m = 0;
    return 0;
}
OUT int cublasGetPointerMode_v2(void *h, int *m) {
    *m = 0;
    return 0;
}
OUT int cublasLtMatmulAlgoGetHeuristic(void *a, void *b, void *c, void *d, void *e, void *f,
                                       void *g, int n, char *found, int *count) {
    memset(found, 0, 128);
    *count = 1;
    return 0;
}
OUT int cudnnCreate(void **h) {
    *h = token();
    return 0;
}
OUT size_t cudnnGetVersion(void) { return (size_t)env("FAKE_CUDNN", 91900); }
OUT int cudnnBackendCreateDescriptor(int t, void **d) {
    *d = token();
    return 0;
}
OUT int cudnnBackendGetAttribute(void *d, int name, int type, long want, long *count, void *out) {
    int none = name == 1302 || name == 1303 || name == 1305;
    if (count)
        *count = !none;
    if (!none && out && want && type != 15)
        memset(out, 0, 8);
    return 0;
}
OUT const char *cudnnGetErrorString(int e) { return "fake"; }
OUT int cudnnCreateTensorDescriptor(void **d) {
    *d = token();
    return 0;
}
OUT int cudnnCreateActivationDescriptor(void **d) {
    *d = token();
    return 0;
}
OUT int cudnnCreateFilterDescriptor(void **d) {
    *d = token();
    return 0;
}
OUT int cudnnCreateConvolutionDescriptor(void **d) {
    *d = token();
    return 0;
}
OUT int cudnnCreateDropoutDescriptor(void **d) {
    *d = token();
    return 0;
}
OUT int cudnnGetBatchNormalizationForwardTrainingExWorkspaceSize(void *h, int m, int o, void *a,
                                                                 void *b, void *c, void *d, void *e,
                                                                 size_t *s) {
    *s = 0;
    return 0;
}
OUT int cudnnGetBatchNormalizationBackwardExWorkspaceSize(void *h, int m, int o, void *a, void *b,
                                                          void *c, void *d, void *e, void *f,
                                                          void *g, size_t *s) {
    *s = 0;
    return 0;
}
OUT int cudnnGetBatchNormalizationTrainingExReserveSpaceSize(void *h, int m, int o, void *a,
                                                             void *b, size_t *s) {
    *s = 0;
    return 0;
}
OUT int ncclGetVersion(int *v) {
    *v = (int)env("FAKE_NCCL", 22809);
    return 0;
}
OUT int ncclGetUniqueId(char *i) {
    memset(i, 1, 128);
    return 0;
}
OUT int ncclCommInitAll(void **c, int n, const int *d) {
    for (int i = 0; i < n; i++)
        c[i] = token();
    return 0;
}
OUT int
ncclCommInitRankConfig(void **c, int n, struct { char x[128]; } id, int rank, void *config) {
    *c = token();
    return 0;
}
OUT int ncclCommInitRank(void **c, int n, struct { char x[128]; } id, int rank) {
    *c = token();
    return 0;
}
OUT int ncclCommGetAsyncError(void *c, int *e) {
    *e = 0;
    return 0;
}
OUT int ncclCommCount(void *c, int *n) {
    *n = devices();
    return 0;
}
OUT int ncclCommCuDevice(void *c, int *n) {
    *n = current;
    return 0;
}
OUT int ncclCommUserRank(void *c, int *n) {
    *n = 0;
    return 0;
}
OUT const char *ncclGetErrorString(int e) { return "fake"; }
OUT const char *ncclGetLastError(void *c) { return "fake"; }
OUT int cuDevicePrimaryCtxGetState(int d, unsigned *f, int *a) {
    *f = 0;
    *a = 1;
    return 0;
}
OUT int cuGetErrorString(int e, const char **s) {
    *s = "fake";
    return 0;
}
OUT int cuCtxGetCurrent(void **c) {
    static char context[64];
    *c = context;
    return 0;
}
OUT int cuInit(unsigned f) { return 0; }
OUT int cuDriverGetVersion(int *v) {
    *v = 13000;
    return 0;
}
