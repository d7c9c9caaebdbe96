/* What libcuda.so.1 and libnvcuvid.so.1 answer, without a GPU: written from the public header cuviddec.h (Video Codec
 * SDK 13), not from the Python that it tests. The chip is like a Hopper: no AV1. Numbers of the driver's errors: cuda.h. */
#include <stddef.h>

typedef enum { MPEG1, MPEG2, MPEG4, VC1, H264, JPEG, H264_SVC, H264_MVC, HEVC, VP8, VP9, AV1 } cudaVideoCodec;
typedef enum { MONOCHROME, YUV420, YUV422, YUV444 } cudaVideoChromaFormat;

typedef struct {
    cudaVideoCodec eCodecType;
    cudaVideoChromaFormat eChromaFormat;
    unsigned int nBitDepthMinus8;
    unsigned int reserved1[3];
    unsigned char bIsSupported;
    unsigned char nNumNVDECs;
    unsigned short nOutputFormatMask;
    unsigned int nMaxWidth;
    unsigned int nMaxHeight;
    unsigned int nMaxMBCount;
    unsigned short nMinWidth;
    unsigned short nMinHeight;
    unsigned char bIsHistogramSupported;
    unsigned char nCounterBitDepth;
    unsigned short nMaxHistogramBins;
    unsigned int reserved3[10];
} CUVIDDECODECAPS;

int layout[] = {
    sizeof(CUVIDDECODECAPS), offsetof(CUVIDDECODECAPS, eCodecType), offsetof(CUVIDDECODECAPS, eChromaFormat),
    offsetof(CUVIDDECODECAPS, nBitDepthMinus8), offsetof(CUVIDDECODECAPS, bIsSupported),
    offsetof(CUVIDDECODECAPS, nNumNVDECs), offsetof(CUVIDDECODECAPS, nOutputFormatMask),
    offsetof(CUVIDDECODECAPS, nMaxWidth), offsetof(CUVIDDECODECAPS, nMaxHeight),
    offsetof(CUVIDDECODECAPS, nMaxMBCount), offsetof(CUVIDDECODECAPS, nMinWidth),
    offsetof(CUVIDDECODECAPS, nMinHeight),
};

int devices = 2, old_header = 0; /* old_header: no format mask, as drivers of 2017 */
char failing[64]; /* a function that fails with CUDA_ERROR_UNKNOWN */
int retained, current, device_asked = -1, questions;
static int started, some_context;

static int fails(const char *name) {
    const char *a = failing;
    while (*a && *a == *name) a++, name++;
    return !*a && !*name ? 999 : 0;
}

int cuInit(unsigned int flags) { started = 1; return fails("cuInit"); }

int cuDeviceGet(int *device, int ordinal) {
    if (!started) return 3;
    if (ordinal < 0 || ordinal >= devices) return 101;
    *device = 7 + ordinal; /* a handle, not the ordinal */
    device_asked = ordinal;
    return fails("cuDeviceGet");
}

int cuDevicePrimaryCtxRetain(void **context, int device) {
    if (device < 7) return 101;
    if (fails("cuDevicePrimaryCtxRetain")) return 2;
    *context = &some_context;
    retained++;
    return 0;
}

int cuDevicePrimaryCtxRelease_v2(int device) { retained--; return device < 7 ? 101 : 0; }
int cuCtxPushCurrent_v2(void *context) { if (context != &some_context) return 201; current++; return 0; }
int cuCtxPopCurrent_v2(void **context) { *context = &some_context; current--; return 0; }

int cuGetErrorName(int code, const char **words) {
    *words = code == 101 ? "CUDA_ERROR_INVALID_DEVICE" : code == 201 ? "CUDA_ERROR_INVALID_CONTEXT" : NULL;
    return *words ? 0 : 1;
}

#ifndef WITHOUT_CAPS
int cuvidGetDecoderCaps(CUVIDDECODECAPS *caps) {
    static const struct { cudaVideoCodec codec; unsigned most, blocks; unsigned short width, height; } table[] = {
        {MPEG2, 4080, 65280, 48, 16}, {MPEG4, 2032, 8128, 48, 16}, {H264, 4096, 65536, 48, 16},
        {HEVC, 8192, 262144, 144, 144}, {VP8, 4096, 65536, 48, 16}, {VP9, 8192, 262144, 128, 128},
    };
    if (!current) return 201;
    if (caps->eChromaFormat != YUV420 || caps->nBitDepthMinus8 || caps->reserved1[0] || caps->reserved1[1] ||
        caps->reserved1[2] || caps->reserved3[9]) return 1;
    questions++;
    if (fails("cuvidGetDecoderCaps")) return 999;
    caps->bIsSupported = 0;
    for (int i = 0; i < (int)(sizeof table / sizeof *table); i++)
        if (table[i].codec == caps->eCodecType) {
            caps->bIsSupported = 1;
            caps->nNumNVDECs = old_header ? 0 : 7;
            caps->nOutputFormatMask = old_header ? 0 : table[i].codec == VP8 ? 2 : 3; /* bit 0: NV12, bit 1: P016 */
            caps->nMaxWidth = table[i].most;
            caps->nMaxHeight = table[i].most - 16;
            caps->nMaxMBCount = table[i].blocks;
            caps->nMinWidth = table[i].width;
            caps->nMinHeight = table[i].height;
        }
    return 0;
}
#endif
