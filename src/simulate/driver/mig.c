/*
 * Cards that are divided into devices of their own. What these answer besides is in device.c and processes.c;
 * all else is not supported behind their handles.
 */
#include "state.h"

answer nvmlDeviceGetMigMode(device device, unsigned int *current, unsigned int *pending) {
    VISIT_GPU(device);
    TRY(give_narrow(visit.thing, NUMBER_mig, current));
    if (give_narrow(visit.thing, NUMBER_mig_pending, pending) == NOT_SUPPORTED) *pending = *current;
    return OK;
}

static unsigned int mig_places(const struct visit *visit) {
    const struct thing *card = visit->thing;
    if (!card->has[NUMBER_mig] || !card->number[NUMBER_mig]) return 0;
    return card->has[NUMBER_mig_max] ? (unsigned int)card->number[NUMBER_mig_max] : 7;
}

answer nvmlDeviceGetMaxMigDeviceCount(device device, unsigned int *out) {
    VISIT_GPU(device);
    *out = mig_places(&visit);
    return OK;
}

answer nvmlDeviceGetMigDeviceHandleByIndex(device device, unsigned int index, void **out) {
    VISIT_GPU(device);
    if (!visit.thing->has[NUMBER_mig]) return NOT_SUPPORTED;
    if (!mig_places(&visit)) return NOT_FOUND;
    if (index >= mig_places(&visit)) return INVALID_ARGUMENT;
    if (!thing_of(visit.state, KIND_mig, visit.gpu, index)) return NOT_FOUND;
    *out = mig_handle(visit.gpu, index);
    return OK;
}

answer nvmlDeviceGetDeviceHandleFromMigDeviceHandle(device device, void **out) {
    VISIT_DEVICE(device);
    if (!visit.is_mig) return INVALID_ARGUMENT;
    *out = gpu_handle(visit.gpu);
    return OK;
}

answer nvmlDeviceIsMigDeviceHandle(device device, unsigned int *out) {
    VISIT_DEVICE(device);
    *out = (unsigned int)visit.is_mig;
    return OK;
}

static answer instance_id(const struct visit *visit, enum number number, unsigned int *out) {
    return visit->is_mig ? give_narrow(visit->thing, number, out) : NOT_SUPPORTED;
}

answer nvmlDeviceGetGpuInstanceId(device device, unsigned int *out) {
    VISIT_DEVICE(device);
    return instance_id(&visit, NUMBER_gi, out);
}

answer nvmlDeviceGetComputeInstanceId(device device, unsigned int *out) {
    VISIT_DEVICE(device);
    return instance_id(&visit, NUMBER_ci, out);
}

static answer give_attributes(const struct visit *visit, struct attributes *out) {
    if (!visit->is_mig) return NOT_SUPPORTED;
    const wide *number = visit->thing->number;
    *out = (struct attributes){
        .multiprocessors = (unsigned int)number[NUMBER_sm_count],
        .copy_engines = (unsigned int)number[NUMBER_copy_engines],
        .decoders = (unsigned int)number[NUMBER_decoders],
        .encoders = (unsigned int)number[NUMBER_encoders],
        .jpegs = (unsigned int)number[NUMBER_jpegs],
        .ofas = (unsigned int)number[NUMBER_ofas],
        .gpu_slices = (unsigned int)number[NUMBER_slices],
        .compute_slices = (unsigned int)number[NUMBER_ci_slices],
        .memory_mib = number[NUMBER_mem_total] >> 20,
    };
    return OK;
}

answer nvmlDeviceGetAttributes_v2(device device, struct attributes *out) {
    VISIT_DEVICE(device);
    return give_attributes(&visit, out);
}

answer nvmlDeviceGetAttributes(device device, struct attributes *out) {
    VISIT_DEVICE(device);
    return give_attributes(&visit, out);
}
