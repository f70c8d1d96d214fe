"""Surfaces of trained worlds: depth maps of the splats fused in a volume, meshed, textured and written.

May import: what `utils.exports` may.
Start: `mesh.fuse_mesh`; `volume` is the signed distances, `texture` the picture on the mesh, `mesh_files` writes PLY and GLB.
"""
