{{- define "leash.labels" -}}
app.kubernetes.io/part-of: leash
app.kubernetes.io/instance: {{ .values.name }}
app.kubernetes.io/component: {{ .component }}
{{- end -}}

{{- define "leash.metadata" -}}
name: {{ .name }}
namespace: {{ .values.namespace }}
labels:
  {{- include "leash.labels" (dict "values" .values "component" "job") | nindent 2 }}
{{- end -}}

{{- define "leash.quantities" -}}
cpu: {{ .cpus | quote }}
memory: {{ .memory_gib }}Gi
{{- if .gpus }}
nvidia.com/gpu: {{ .gpus | quote }}
{{- end }}
{{- end -}}

{{- define "leash.unprivileged" -}}
allowPrivilegeEscalation: false
capabilities:
  drop:
    - ALL
{{- end -}}

{{- /* A pod template with one container: values, component, size, and `tolerations` and `selector` of its nodes. */ -}}
{{- define "leash.pod" -}}
{{- $is_head := eq .component "head" -}}
metadata:
  labels:
    {{- include "leash.labels" . | nindent 4 }}
spec:
  securityContext:
    runAsNonRoot: true
    runAsUser: 1000
    runAsGroup: 1000
    fsGroup: 1000
    fsGroupChangePolicy: OnRootMismatch
    seccompProfile:
      type: RuntimeDefault
  {{- if not $is_head }}
  automountServiceAccountToken: false
  {{- end }}
  {{- with .selector }}
  nodeSelector:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- if or .tolerations .size.gpus }}
  tolerations:
    {{- range $key, $value := .tolerations }}
    - key: {{ $key }}
      operator: Equal
      value: {{ $value | quote }}
      effect: NoSchedule
    {{- end }}
    {{- if .size.gpus }}
    - key: nvidia.com/gpu
      operator: Exists
      effect: NoSchedule
    {{- end }}
  {{- end }}
  containers:
    - name: ray-{{ ternary "head" "worker" $is_head }}
      image: {{ .values.image }}
      imagePullPolicy: IfNotPresent
      env:
        - name: LEASH_CACHE
          value: /runs/cache
        - name: RAY_USAGE_STATS_ENABLED
          value: "0"
      ports:
        - name: metrics
          containerPort: 8080
        {{- if $is_head }}
        - name: gcs-server
          containerPort: 6379
        - name: dashboard
          containerPort: 8265
        - name: as-metrics
          containerPort: 44217
        - name: dash-metrics
          containerPort: 44227
        - name: run-metrics
          containerPort: {{ .values.metrics_port }}
        {{- end }}
      resources:
        requests:
          {{- include "leash.quantities" .size | nindent 10 }}
        limits:
          {{- include "leash.quantities" .size | nindent 10 }}
      securityContext:
        {{- include "leash.unprivileged" . | nindent 8 }}
      volumeMounts:
        - name: runs
          mountPath: /runs
        - name: shared-memory
          mountPath: /dev/shm
        {{- if $is_head }}
        - name: recipe
          mountPath: /etc/leash
        {{- end }}
  volumes:
    - name: runs
      persistentVolumeClaim:
        claimName: {{ .values.name }}-runs
    - name: shared-memory
      emptyDir:
        medium: Memory
        sizeLimit: {{ .size.shared_memory_gib }}Gi
    {{- if $is_head }}
    - name: recipe
      configMap:
        name: {{ .values.name }}-recipe
    {{- end }}
{{- end -}}

{{- /* A group that scales from 0: values, name, priority, selector, tolerations. */ -}}
{{- define "leash.scaling-group" -}}
groupName: {{ .name }}
replicas: 0
minReplicas: 0
maxReplicas: {{ .values.rollout.max_replicas }}
idleTimeoutSeconds: {{ .values.rollout.idle_timeout_s }}
priority: {{ .priority }}
rayStartParams:
  num-cpus: {{ .values.rollout.ray_cpus | quote }}
  object-store-memory: {{ mul .values.rollout.shared_memory_gib 536870912 | quote }}
template:
  {{- include "leash.pod" (merge (dict "component" "rollout" "size" .values.rollout) .) | nindent 2 }}
{{- end -}}
