// The 3D view of the gallery: one canvas, one mesh at a time.
import {
  AmbientLight, Box3, Color, DirectionalLight, HemisphereLight, MeshBasicMaterial,
  PerspectiveCamera, Scene, Sphere, WebGLRenderer,
} from "three";
import { OrbitControls } from "three/addons/controls/OrbitControls.js";
import { GLTFLoader } from "three/addons/loaders/GLTFLoader.js";

// Shows a GLB (ArrayBuffer) in `canvas`. Resolves, once the first frame is drawn, to
// { setStyle("lit" | "flat" | "wire"), dispose() }.
export async function show(canvas, glb, background) {
  const renderer = new WebGLRenderer({ canvas, antialias: true });
  renderer.setPixelRatio(Math.min(window.devicePixelRatio, 2));
  const gltf = await new GLTFLoader().parseAsync(glb, "");
  const object = gltf.scene;

  const scene = new Scene();
  scene.background = new Color(background);
  scene.add(object);
  const ball = new Box3().setFromObject(object).getBoundingSphere(new Sphere());
  const camera = new PerspectiveCamera(35, 1, ball.radius / 50, ball.radius * 20);
  const distance = (1.15 * ball.radius) / Math.sin((35 * Math.PI) / 360);
  camera.position.set(0.5, 0.35, 0.8).normalize().multiplyScalar(distance).add(ball.center);
  const lamp = new DirectionalLight(0xffffff, 1.6);
  lamp.position.set(-0.6, 1, 0.5);
  camera.add(lamp);
  const lights = [new HemisphereLight(0xffffff, 0x998877, 1.5), new AmbientLight(0xffffff, 0.5)];
  scene.add(camera, ...lights);

  const controls = new OrbitControls(camera, canvas);
  controls.target.copy(ball.center);
  controls.enableDamping = true;
  controls.autoRotate = !window.matchMedia("(prefers-reduced-motion: reduce)").matches;
  controls.autoRotateSpeed = 1.5;
  controls.addEventListener("start", () => { controls.autoRotate = false; });

  const surfaces = [];
  object.traverse((node) => {
    if (!node.isMesh) return;
    const lit = node.material;
    const flat = new MeshBasicMaterial({ map: lit.map, vertexColors: lit.vertexColors });
    const wire = new MeshBasicMaterial({ color: 0x5577aa, wireframe: true });
    surfaces.push({ node, lit, flat, wire });
  });

  function frame() {
    const { clientWidth, clientHeight } = canvas;
    const ratio = renderer.getPixelRatio();
    if (canvas.width !== Math.floor(clientWidth * ratio)
        || canvas.height !== Math.floor(clientHeight * ratio)) {
      renderer.setSize(clientWidth, clientHeight, false);
      camera.aspect = clientWidth / Math.max(clientHeight, 1);
      camera.updateProjectionMatrix();
    }
    controls.update();
    renderer.render(scene, camera);
  }
  frame();
  renderer.setAnimationLoop(frame);

  return {
    setStyle(style) { for (const s of surfaces) s.node.material = s[style]; },
    // Browsers allow a dozen WebGL contexts: give this one back at once.
    dispose() {
      renderer.setAnimationLoop(null);
      controls.dispose();
      for (const s of surfaces) {
        s.node.geometry.dispose();
        s.lit.map?.dispose();
        s.lit.dispose();
        s.flat.dispose();
        s.wire.dispose();
      }
      renderer.dispose();
      renderer.forceContextLoss();
    },
  };
}
